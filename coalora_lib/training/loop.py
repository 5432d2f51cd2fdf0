"""One training loop for every method: over a set of configurations, with the search between."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.resolving import ConfigurationLike
from coalora_lib.adapter.saving import load_parameters, trained_parameters
from coalora_lib.kinds import Examples, Loss, TaskKind, objective_of
from coalora_lib.search import Round, SearchPlan
from coalora_lib.training.alternation import Scorer, search_model
from coalora_lib.training.batches import ShuffledBatches
from coalora_lib.training.capture import PADDING, CapturedPass, ready_for_capture
from coalora_lib.training.checkpoint import CheckpointFolder, State
from coalora_lib.training.evaluation import new_accelerator, pad_token_of, transformers_model
from coalora_lib.training.plan import History, TrainingPlan
from coalora_lib.training.restoring import StoredState
from coalora_lib.training.state import (
    data_digest,
    gathered_random_states,
    new_optimizer,
    on_main_process,
    set_random_states,
)
from coalora_lib.training.step import Distillation, forward_backward
from coalora_lib.training.training_set import Drawn, TrainingSet, configuration_kept


def train(
    model: nn.Module,
    examples: Examples,
    configurations: Iterable[ConfigurationLike] | None,
    plan: TrainingPlan,
    *,
    search: SearchPlan | None = None,
    scoring: Examples | None = None,
    teacher: nn.Module | None = None,
    kind: str | TaskKind | None = None,
    loss: Loss | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 200,
    scorer: Scorer | None = None,
) -> History:
    """Train a model, over a set of configurations if it is a :class:`CoaLora`.

    Each step draws ``configurations_per_step`` of the set and follows the mean gradient of the
    task loss (paper, equation 5). With ``adjuster="none"`` this is Shared-LoRA, and QLoRA on a set
    of one. The run uses the GPU if there is one, and all processes that ``accelerate launch`` or
    ``torchrun`` started. Afterwards, and after an error, the model has the configuration, or none,
    that it had before.

    Args:
        model: trained in place.
        examples: as a :class:`~coalora_lib.kinds.TaskKind` makes them, or one's own.
        configurations: the training set, each what ``set_configuration`` takes; None for a model
            without configurations.
        plan: sizes, schedule, seed.
        search: improve the set between stretches of training, scored on the examples ``scoring``;
            results are to be reported on others.
        teacher: an unquantized model, where ``plan.teacher`` is "model".
        kind, loss: what it is trained for, see :func:`~coalora_lib.kinds.objective_of`; by default
            what the model's class says.
        checkpoints: folder to write checkpoints into every so many steps, and to go on from if it
            holds some of the same run: a run that was killed ends with the weights of one that was
            not, bit for bit on a CPU.
        scorer: measures a search's losses in this process's place, see
            :class:`coalora_lib.batch.scoring.WorkerScorer`.

    Raises:
        ValueError, TypeError: the set is empty or none, what is given does not fit together, or the
            folder holds checkpoints of another run.
        OSError, RuntimeError: the folder cannot be written into, or another training does.
        FloatingPointError: a loss is not finite; step and configuration are named, and the
            weights are those before the step.
    """
    objective = objective_of(transformers_model(model), kind, loss)
    given = model, examples, configurations, plan, search, scoring, teacher, objective, scorer
    trainer = Trainer(*given)
    return trainer.run(checkpoints, checkpoint_every)


class Trainer:
    """The state of a run; arguments as :func:`train`, which most callers want."""

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        configurations: Iterable[ConfigurationLike] | None,
        plan: TrainingPlan,
        search: SearchPlan | None = None,
        scoring: Examples | None = None,
        teacher: nn.Module | None = None,
        objective: TaskKind | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self.accelerator = new_accelerator()
        self.objective = objective or objective_of(transformers_model(model))
        self.plan, self.search, self.scoring, self.scorer = plan, search, scoring, scorer
        if search is not None and (configurations is None or not scoring):
            raise ValueError("a search needs a set of configurations and examples to score on")
        if plan.batch_size % self.accelerator.num_processes:
            raise ValueError(
                f"batch_size={plan.batch_size} cannot be shared by "
                f"{self.accelerator.num_processes} processes"
            )
        self.step = 0
        self.losses: list[float] = []
        self.rounds: list[Round] = []
        self.search_seconds = 0.0
        self._started = time.perf_counter()
        self.model = model.to(self.accelerator.device)
        self.set = TrainingSet(model, configurations, plan.seed)
        self.distillation = Distillation(plan, model, teacher, self.accelerator, self.objective)
        self.parameters = trained_parameters(model)
        self.optimizer, self.schedule = new_optimizer(self.parameters, plan)
        on_one_gpu = self.accelerator.device.type == "cuda" and self.accelerator.num_processes == 1
        self.captures = plan.cuda_graphs and on_one_gpu
        multiple = PADDING if self.captures else 1
        self.batches = ShuffledBatches(
            examples, plan.batch_size, pad_token_of(model), plan.seed, multiple
        )
        self._data = data_digest(examples, self.set.flat())
        torch.manual_seed(plan.seed + self.accelerator.process_index)
        self._parallel = model  # what a step calls: gradients are averaged over processes
        if self.accelerator.num_processes > 1:
            self._parallel = self.accelerator.prepare_model(model)
        self._pass = forward_backward(self._parallel, plan, self.accelerator, self.objective)

    def run(self, checkpoints: str | Path | None = None, checkpoint_every: int = 200) -> History:
        """Train to the end of the plan, from the newest checkpoint if there is one."""
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every={checkpoint_every} must be at least 1")
        with configuration_kept(self.model), self._opened(checkpoints) as folder:
            with self.capturing():
                self._run(folder, checkpoint_every)
            self._save(folder)
        if self._parallel is not self.model:
            self.accelerator.unwrap_model(self._parallel, keep_fp32_wrapper=False)
        configurations = self.set.configurations
        if configurations is not None:
            self.model.training_set = [list(each) for each in configurations]
        seconds = time.perf_counter() - self._started
        return History(self.losses, configurations or [], self.rounds, seconds, self.search_seconds)

    def _run(self, folder: CheckpointFolder | None, checkpoint_every: int) -> None:
        """Stretches of training with searches between."""
        stretches = 1 if self.search is None else self.search.rounds
        bar = tqdm(
            total=self.plan.steps,
            initial=self.step,
            desc="training",
            disable=None if self.accelerator.is_main_process else True,
        )
        with bar:
            while True:
                end = self.plan.steps * (len(self.rounds) + 1) // stretches
                while self.step < end:
                    self.losses.append(self.train_step())
                    self.step += 1
                    bar.update()
                    if self.step % checkpoint_every == 0:
                        self._save(folder)
                if len(self.rounds) + 1 == stretches:
                    return
                self._search()
                self._save(folder)

    def train_step(self) -> float:
        """One optimizer step; its loss, averaged over configurations and processes."""
        if not self.model.training:  # it walks through every module
            self.model.train()
        count, processes = self.plan.configurations_per_step, self.accelerator.num_processes
        rows = self.batches.next_rows()[self.accelerator.process_index :: processes]
        batch = {
            name: tensor.to(self.accelerator.device)
            for name, tensor in self.batches.collate(rows).items()
        }
        with self.accelerator.autocast():  # once for all passes, and outside of captured ones
            batch = self.objective.aimed(batch)
        target = self.distillation.target(batch)
        drawn = self.distillation.configurations(self.set.draw, count)
        losses = []
        for position, each in enumerate(drawn):
            if each.configuration is not None:
                self.model.set_configuration(each.configuration)
            teaches = self.distillation.teaches(position)
            waiting = position + 1 < count and processes > 1
            with self.accelerator.no_sync(self._parallel) if waiting else nullcontext():
                result = self._pass(batch, target, teaches)
            losses.append(result.loss)
            if teaches:
                target = result.logits
        # The mean over processes, so that all of them stop at a NaN of one. Here the GPU is
        # waited for, once per step.
        values = self.accelerator.reduce(torch.stack(losses), "mean").tolist()
        self._refuse_non_finite(values, drawn)
        nn.utils.clip_grad_norm_(self.parameters.values(), self.plan.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=not self.captures)
        return sum(values) / count

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """While it lasts, passes are captured and replayed, if the plan and the device are such."""
        if not self.captures:
            yield
            return
        launched = self._pass
        with ready_for_capture(self.model):
            self._pass = CapturedPass(launched, self.parameters.values())
            try:
                yield
            finally:
                self._pass = launched

    def state_dict(self) -> State:
        """All that changes while a run goes on, in tensors that go on changing with it.

        Processes of one run ask for it together, and get the same.
        """
        tree = {
            "step": self.step,
            "losses": self.losses,
            "parameter": self.parameters,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "draws": self.set.generator.get_state(),
            "random": gathered_random_states(self.accelerator),
            "epoch": self.batches.epoch,
            "position": self.batches.position,
            "rounds": [vars(each) for each in self.rounds],
            "set": self.set.flat(),
            "seconds": time.perf_counter() - self._started,
            "search_seconds": self.search_seconds,
        }
        return State.of(tree)

    def load_state_dict(self, state: State) -> None:
        """Go on where :meth:`state_dict` was taken, in a trainer of the same arguments.

        Raises:
            ValueError: it is not of such a trainer; the model is left as it was.
        """
        searches = 0 if self.search is None else self.search.rounds - 1
        own = self.state_dict().tree()
        tree = StoredState.of(state.tree(), own, self.plan.steps, searches)
        set_random_states(self.accelerator, self.set.generator, tree)
        self.batches.seek(tree["epoch"], tree["position"])
        if tree["set"] is not None:
            self.set.replace(tree["set"])
        load_parameters(self.model, tree["parameter"], "the state")
        self.optimizer.load_state_dict(tree["optimizer"])
        self.schedule.load_state_dict(tree["schedule"])
        self.step, self.losses = tree["step"], tree["losses"]
        self._started = time.perf_counter() - tree["seconds"]
        self.search_seconds = tree["search_seconds"]
        self.rounds = [Round(**each) for each in tree["rounds"]]

    @contextmanager
    def _opened(self, checkpoints: str | Path | None) -> Iterator[CheckpointFolder | None]:
        """The folder, locked by the main process; the run stands at its newest checkpoint."""
        if checkpoints is None:
            yield None
            return
        aware = isinstance(self.model, CoaLora)
        about = {
            "plan": asdict(self.plan),
            "search": None if self.search is None else asdict(self.search),
            "settings": self.model.settings.model_dump() if aware else None,
            "data": self._data,
            "processes": self.accelerator.num_processes,
            "parameters": {name: list(p.shape) for name, p in self.parameters.items()},
        }
        folder = CheckpointFolder(checkpoints, about)
        on_main_process(self.accelerator, folder.open)
        try:
            newest = on_main_process(self.accelerator, folder.newest)
            if newest is not None:
                try:
                    self.load_state_dict(folder.read(newest))
                except ValueError as error:
                    raise ValueError(f"checkpoint {newest} cannot be continued: {error}") from None
            yield folder
        finally:
            folder.close()

    def _save(self, folder: CheckpointFolder | None) -> None:
        """Write a checkpoint; the main process does, the others wait."""
        if folder is not None:
            name, state = f"step-{self.step:08d}-{len(self.rounds)}", self.state_dict()
            on_main_process(self.accelerator, lambda: folder.save(name, state))

    def _search(self) -> None:
        """One search round, made by the main process for all."""
        started = time.perf_counter()
        plan, scoring, current = self.search, self.scoring, self.set.flat()
        assert plan is not None and scoring is not None and current is not None  # noqa: PT018
        seed = self.plan.seed + len(self.rounds)
        found = on_main_process(
            self.accelerator,
            lambda: search_model(
                self.model, current, plan, scoring, seed, self.objective, self.scorer
            ),
        )
        self.rounds.append(found)
        self.set.replace(found.configurations[found.kept])
        self.search_seconds += time.perf_counter() - started

    def _refuse_non_finite(self, values: Sequence[float], drawn: Sequence[Drawn]) -> None:
        for value, each in zip(values, drawn, strict=True):
            if not math.isfinite(value):
                self.optimizer.zero_grad(set_to_none=not self.captures)
                where = f"step {self.step}"
                if each.configuration is not None:
                    bits = self.model.space.mean_bits(each.configuration, self.model.shapes)
                    where += f", {each.label} ({bits:.3f} bits)"
                raise FloatingPointError(
                    f"the loss is {value} at {where}; a lower learning rate may help"
                )
