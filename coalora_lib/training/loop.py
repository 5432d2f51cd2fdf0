"""One training loop for every method: over a set of configurations, with the search between."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import get_scheduler

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.linear import LoraLinear, frozen_copies
from coalora_lib.adapter.saving import trained_parameters
from coalora_lib.configuration import FINEST, LayerConfig, from_indices, mean_bits
from coalora_lib.search import Round, SearchPlan
from coalora_lib.training import checkpoint
from coalora_lib.training.alternation import search_model, to_flat
from coalora_lib.training.batches import ShuffledBatches
from coalora_lib.training.capture import CapturedPass
from coalora_lib.training.evaluation import Examples, new_accelerator, pad_token_of
from coalora_lib.training.losses import distillation_loss

Configuration = Sequence[LayerConfig]

#: Stands for the finest configuration among the indices of a step's.
FINEST_INDEX = -1
#: Captured batches are padded to a multiple of this many tokens.
PADDING = 8


@dataclass(frozen=True)
class TrainingPlan:
    """How to train; every method of a comparison gets the same plan.

    Attributes:
        steps: optimizer steps.
        batch_size: examples in a step, over all processes together; each configuration of the
            step sees the same ones.
        configurations_per_step: configurations drawn in a step; their losses are averaged.
        learning_rate: the peak, reached after ``warmup`` of the steps.
        schedule: how it falls to zero after that, "cosine" or "linear".
        warmup: as a part of the steps.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        distillation: weight of the teacher's term in the loss, 0 to 1; 0 needs no teacher.
        in_place: the teacher is the model itself. The first of a step's configurations is the
            finest one, and the others learn from its outputs, so that a teacher costs no passes
            of its own (Yu and Huang 2019, arXiv 1903.05134, section 3.3).
        temperature: both distributions are softened by it in that term.
        cuda_graphs: capture the passes on a single GPU, for models small enough to wait for
            launches. Batches are padded to multiples of :data:`PADDING` tokens, so that few
            shapes are captured. Without effect on a processor and over several processes.
        seed: of the order of examples and configurations, and of dropout.
    """

    steps: int
    batch_size: int = 32
    configurations_per_step: int = 2
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    distillation: float = 0.0
    in_place: bool = False
    temperature: float = 2.0
    cuda_graphs: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "configurations_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.schedule not in ("cosine", "linear"):
            raise ValueError(f"schedule={self.schedule!r} is not known; allowed: cosine, linear")
        for name in ("warmup", "distillation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside 0..1")
        if self.in_place and (self.configurations_per_step < 2 or not self.distillation):
            raise ValueError(
                "in_place=True needs at least 2 configurations_per_step, and a distillation above 0"
            )


@dataclass(frozen=True)
class History:
    """What a run leaves beside the trained model.

    Attributes:
        losses: of each step, averaged over its configurations.
        configurations: the training set at the end.
        rounds: the searches, in order.
        search_seconds: wall time that they took, since the run was started or resumed.
    """

    losses: list[float]
    configurations: list[Configuration]
    rounds: list[Round]
    search_seconds: float = 0.0


def train(
    model: nn.Module,
    examples: Examples,
    configurations: Sequence[Configuration] | None,
    plan: TrainingPlan,
    *,
    search: SearchPlan | None = None,
    scoring: Examples | None = None,
    teacher: nn.Module | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 200,
) -> History:
    """Train a model, over a set of configurations if it is a :class:`CoaLora`.

    Each step draws ``configurations_per_step`` of the set and follows the mean gradient of the
    task loss (paper, equation 5: the expectation over configurations). With
    ``configuration_aware=False`` this is Shared-LoRA, and QLoRA on a set of one. The run uses the
    GPU if there is one, and all processes that ``accelerate launch`` or ``torchrun`` started.

    Args:
        model: trained in place.
        examples: from :func:`~coalora_lib.training.tokenize` or ``tokenize_blocks``.
        configurations: the training set; None for a model without configurations.
        plan: sizes, schedule, seed.
        search: improve the set between stretches of training.
        scoring: examples that the search scores configurations on; not those that results are
            reported on.
        teacher: an unquantized model, for ``plan.distillation`` unless it is ``in_place``.
        checkpoints: folder to write checkpoints into, and to go on from if it holds some of the
            same run: a run that was killed ends with the weights of one that was not, bit for bit
            on a processor.
        checkpoint_every: steps between checkpoints.

    Raises:
        ValueError: the set is empty, the model and the arguments do not fit together, or the
            folder holds checkpoints of another run.
        FloatingPointError: a loss is not finite; step and configuration are named, and the
            weights are those before the step.
    """
    trainer = Trainer(model, examples, configurations, plan, search, scoring, teacher)
    if checkpoints is not None:
        trainer.resume(Path(checkpoints))
    return trainer.run(None if checkpoints is None else Path(checkpoints), checkpoint_every)


class Trainer:
    """The state of a run; arguments as :func:`train`, which most callers want."""

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        configurations: Sequence[Configuration] | None,
        plan: TrainingPlan,
        search: SearchPlan | None = None,
        scoring: Examples | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.accelerator = new_accelerator()
        self.plan, self.search, self.scoring = plan, search, scoring
        self._check(model, configurations, teacher)
        self.step = 0
        self.losses: list[float] = []
        self.rounds: list[Round] = []
        self.search_seconds = 0.0
        self.configurations = None if configurations is None else list(configurations)
        self.model = model.to(self.accelerator.device)
        self.teacher = None if teacher is None else teacher.to(self.accelerator.device).eval()
        self.parameters = trained_parameters(model)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=plan.learning_rate,
            weight_decay=plan.weight_decay,
            fused=True,
        )
        self.schedule = get_scheduler(
            plan.schedule, self.optimizer, round(plan.warmup * plan.steps), plan.steps
        )
        self._captured = (
            plan.cuda_graphs
            and self.accelerator.device.type == "cuda"
            and self.accelerator.num_processes == 1
        )
        self._pass = self._forward_backward
        self.batches = ShuffledBatches(
            examples,
            plan.batch_size,
            pad_token_of(model),
            plan.seed,
            multiple=PADDING if self._captured else 1,
        )
        self._data = data_digest(examples, self.configurations)
        self.generator = torch.Generator().manual_seed(plan.seed)
        torch.manual_seed(plan.seed + self.accelerator.process_index)
        self._parallel = model  # what a step calls: gradients are averaged over processes
        if self.accelerator.num_processes > 1:
            self._parallel = self.accelerator.prepare_model(model)

    @property
    def about(self) -> dict:
        """What a checkpoint must agree with to be one of this run."""
        aware = isinstance(self.model, CoaLora)
        return {
            "plan": asdict(self.plan),
            "search": None if self.search is None else asdict(self.search),
            "settings": self.model.settings.model_dump() if aware else None,
            "data": self._data,
            "processes": self.accelerator.num_processes,
            "parameters": {name: list(p.shape) for name, p in self.parameters.items()},
        }

    def resume(self, folder: Path) -> None:
        """Go on from the newest whole checkpoint in a folder, if there is one."""
        checkpoint.resume(self, folder)

    def run(self, checkpoints: Path | None = None, checkpoint_every: int = 200) -> History:
        """Train to the end of the plan."""
        rounds = 1 if self.search is None else self.search.rounds
        bar = tqdm(
            total=self.plan.steps,
            initial=self.step,
            desc="training",
            disable=None if self.accelerator.is_main_process else True,
        )
        with bar, self._capturing() if self._captured else nullcontext():
            while True:
                stretch = self.plan.steps * (len(self.rounds) + 1) // rounds
                while self.step < stretch:
                    self.losses.append(self.train_step())
                    self.step += 1
                    bar.update()
                    if checkpoints is not None and self.step % checkpoint_every == 0:
                        checkpoint.save(self, checkpoints)
                if len(self.rounds) + 1 == rounds:
                    break
                self._search()
                if checkpoints is not None:
                    checkpoint.save(self, checkpoints)
        if checkpoints is not None:
            checkpoint.save(self, checkpoints)
        if self._parallel is not self.model:
            self.accelerator.unwrap_model(self._parallel, keep_fp32_wrapper=False)
        if isinstance(self.model, CoaLora) and self.configurations is not None:
            self.model.training_set = [list(each) for each in self.configurations]
        return History(self.losses, self.configurations or [], self.rounds, self.search_seconds)

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """While it lasts, passes are captured and replayed."""
        aware = isinstance(self.model, CoaLora)
        frozen = (layer for layer in self.model.modules() if isinstance(layer, LoraLinear))
        in_place = self.model.weights_in_place() if aware else frozen_copies(frozen)
        # Not cuDNN's attention: on a few dozen tokens a call of it takes 70 us.
        with in_place, sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            self._pass = CapturedPass(self._forward_backward, self.parameters.values())
            try:
                yield
            finally:
                self._pass = self._forward_backward

    def train_step(self) -> float:
        """One optimizer step; its loss."""
        if not self.model.training:  # it walks through every module
            self.model.train()
        count, processes = self.plan.configurations_per_step, self.accelerator.num_processes
        rows = self.batches.next_rows()[self.accelerator.process_index :: processes]
        batch = self._to_device(self.batches.collate(rows))
        if self.teacher is not None:
            batch["target"] = self._teach(batch)
        drawn = self._draw(count)
        losses = []
        for position, index in enumerate(drawn):
            if index is not None:
                self.model.set_configuration(self._configuration(index))
            waiting = position + 1 < count and processes > 1
            with self.accelerator.no_sync(self._parallel) if waiting else nullcontext():
                loss, *logits = self._pass(batch)
            losses.append(loss)
            if logits:
                (batch["target"],) = logits
        # The mean over processes, so that all of them stop at a NaN of one. Here the GPU is
        # waited for, once a step.
        values = self.accelerator.reduce(torch.stack(losses), "mean").tolist()
        self._refuse_non_finite(values, drawn)
        nn.utils.clip_grad_norm_(self.parameters.values(), self.plan.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=not self._captured)
        return sum(values) / count

    def _draw(self, count: int) -> list[int | None]:
        if self.configurations is None:
            return [None] * count
        first = [FINEST_INDEX] if self.plan.in_place else []
        size = (count - len(first),)
        drawn = torch.randint(len(self.configurations), size, generator=self.generator)
        return first + drawn.tolist()

    def _configuration(self, index: int) -> Configuration:
        """Of the set, or the finest one."""
        if index == FINEST_INDEX:
            return [FINEST] * len(self.model.layer_names)
        return self.configurations[index]

    def _forward_backward(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """One pass under the current configuration: adds to the gradients, returns the loss.

        And the logits, where the passes behind it are to learn from them.
        """
        batch = batch.copy()
        target = batch.pop("target", None)
        with self.accelerator.autocast():
            output = self._parallel(**batch)
        loss = output.loss
        if target is not None:
            share, heat = self.plan.distillation, self.plan.temperature
            soft = distillation_loss(output.logits, target, batch["labels"], heat)
            loss = (1 - share) * loss + share * soft
        (loss / self.plan.configurations_per_step).backward()
        teaches = self.plan.in_place and target is None
        return (loss.detach(), output.logits.detach()) if teaches else (loss.detach(),)

    @torch.no_grad()
    def _teach(self, batch: dict[str, Tensor]) -> Tensor:
        """The teacher's logits."""
        with self.accelerator.autocast():
            return self.teacher(**{k: v for k, v in batch.items() if k != "labels"}).logits

    def _search(self) -> None:
        """One search round, made by the main process for all."""
        started = time.perf_counter()
        found = [None]
        if self.accelerator.is_main_process:
            seed = self.plan.seed + len(self.rounds)
            current = to_flat(self.configurations)
            found = [search_model(self.model, current, self.search, self.scoring, seed)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(found)
        self.rounds.append(found[0])
        kept = found[0].configurations[found[0].kept]
        self.configurations = [from_indices(row) for row in kept]
        self.search_seconds += time.perf_counter() - started

    def random_states(self) -> list[dict[str, Tensor]]:
        """torch's random states, of each process."""
        state = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        return gather_object([state]) if self.accelerator.num_processes > 1 else [state]

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _refuse_non_finite(self, values: list[float], drawn: list[int | None]) -> None:
        for value, index in zip(values, drawn, strict=True):
            if not math.isfinite(value):
                self.optimizer.zero_grad(set_to_none=not self._captured)
                where = f"step {self.step}"
                if index is not None:
                    bits = mean_bits(self._configuration(index), self.model.sizes)
                    which = f"{index} of the set" if index != FINEST_INDEX else "the finest"
                    where += f", configuration {which} ({bits:.3f} bits)"
                raise FloatingPointError(
                    f"the loss is {value} at {where}; a lower learning rate may help"
                )

    def _check(
        self,
        model: nn.Module,
        configurations: Sequence[Configuration] | None,
        teacher: nn.Module | None,
    ) -> None:
        if configurations is not None:
            if not len(configurations):
                raise ValueError("the set of training configurations is empty")
            if not isinstance(model, CoaLora):
                raise ValueError(
                    f"a {type(model).__name__} has no configurations to train over; give None"
                )
            for number, configuration in enumerate(configurations):
                if len(configuration) != len(model.layer_names):
                    raise ValueError(
                        f"configuration {number} of the set has {len(configuration)} layers; the "
                        f"model has {len(model.layer_names)}"
                    )
        if self.search is not None and (configurations is None or not self.scoring):
            raise ValueError("a search needs a set of configurations and examples to score on")
        if self.plan.in_place and (configurations is None or teacher is not None):
            raise ValueError("in_place=True needs a set of configurations, and no other teacher")
        if bool(self.plan.distillation) != (self.plan.in_place or teacher is not None):
            needs = "needs a" if self.plan.distillation else "has no use for a"
            raise ValueError(f"distillation={self.plan.distillation} {needs} teacher")
        if self.plan.batch_size % self.accelerator.num_processes:
            raise ValueError(
                f"batch_size={self.plan.batch_size} cannot be shared by "
                f"{self.accelerator.num_processes} processes"
            )


def data_digest(examples: Examples, configurations: list[Configuration] | None) -> str:
    """sha256 over the tokens, their labels and the first training set."""
    digest = hashlib.sha256()
    for name in ("input_ids", "labels"):
        joined = torch.cat([example[name].reshape(-1) for example in examples])
        digest.update(joined.numpy())
    if configurations is not None:
        digest.update(to_flat(configurations).numpy())
    return digest.hexdigest()
