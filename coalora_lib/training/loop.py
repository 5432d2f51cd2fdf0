"""One training loop for every method, and the evaluation under a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm
from transformers import get_scheduler

from coalora_lib.adapter import CoaLora
from coalora_lib.configuration import LayerConfig
from coalora_lib.training.batches import ordered_batches, shuffled_batches

Configuration = Sequence[LayerConfig]
Examples = list[dict[str, Tensor]]


@dataclass(frozen=True)
class TrainingPlan:
    """How to train; every method of a comparison gets the same plan.

    Attributes:
        steps: optimizer steps.
        batch_size: examples in a step; each configuration of the step sees the same ones.
        configurations_per_step: configurations drawn in a step; their losses are averaged.
        learning_rate: the peak, reached after ``warmup`` of the steps and followed by a cosine.
        warmup: as a part of the steps.
        max_grad_norm: gradients are clipped to this norm.
        seed: of the order of examples and configurations.
    """

    steps: int
    batch_size: int = 32
    configurations_per_step: int = 2
    learning_rate: float = 1e-3
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Accuracy (0 to 1), mean cross-entropy (nats) and which examples were right, in order."""

    accuracy: float
    loss: float
    correct: Tensor


class Trainer:
    """The state of a run: model, optimizer, schedule and streams, advanced by :meth:`run`.

    Args:
        model: trained in place.
        examples: from :func:`coalora_lib.training.tokenize`.
        plan: sizes the schedule; the run may be cut into several calls of :meth:`run`.
    """

    def __init__(self, model: CoaLora, examples: Examples, plan: TrainingPlan) -> None:
        self.plan = plan
        self.step = 0
        self.accelerator = new_accelerator()
        self.model = model.to(self.accelerator.device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=plan.learning_rate)
        self.schedule = get_scheduler(
            "cosine", self.optimizer, round(plan.warmup * plan.steps), plan.steps
        )
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.batches = shuffled_batches(
            examples, plan.batch_size, pad_token_of(model), self.generator
        )

    def run(self, configurations: Sequence[Configuration], steps: int) -> list[float]:
        """Train for some steps over a set of configurations.

        Each step draws ``configurations_per_step`` of the set and follows the mean gradient of
        the task loss (paper, equation 5: the expectation over configurations).

        Returns:
            The loss of each step, averaged over its configurations.

        Raises:
            ValueError: the set is empty.
            FloatingPointError: a loss is not finite; step and configuration are named.
        """
        if not configurations:
            raise ValueError("the set of training configurations is empty")
        self.model.train()
        losses = []
        for _ in tqdm(range(steps), "training", disable=None):
            batch = {k: v.to(self.accelerator.device) for k, v in next(self.batches).items()}
            count = self.plan.configurations_per_step
            drawn = torch.randint(len(configurations), (count,), generator=self.generator)
            total = 0.0
            for index in drawn.tolist():
                self.model.set_configuration(configurations[index])
                with self.accelerator.autocast():
                    loss = self.model(**batch).loss
                self._check(loss, index)
                self.accelerator.backward(loss / count)
                total += loss.item() / count
            torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.max_grad_norm)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.step += 1
            losses.append(total)
        return losses

    def _check(self, loss: Tensor, index: int) -> None:
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.step}, configuration {index} of the "
                f"set ({self.model.bits:.3f} bits); a lower learning rate may help"
            )


def train(
    model: CoaLora, examples: Examples, configurations: Sequence[Configuration], plan: TrainingPlan
) -> list[float]:
    """Train on a fixed set of configurations; arguments, result and errors as :class:`Trainer`.

    With ``configuration_aware=False`` this is Shared-LoRA, and QLoRA on a set of one.
    """
    return Trainer(model, examples, plan).run(configurations, plan.steps)


@torch.no_grad()
def evaluate(
    model: CoaLora,
    examples: Examples,
    configuration: Configuration | float | None,
    batch_size: int = 64,
) -> Evaluation:
    """The model's accuracy and loss under a configuration.

    Args:
        model: left in evaluation mode, with the configuration set.
        examples: from :func:`coalora_lib.training.tokenize`.
        configuration: one, a budget in bits, or None for the current one.
        batch_size: examples in a forward.
    """
    accelerator = new_accelerator()
    model.to(accelerator.device).eval()
    if configuration is not None:
        model.set_configuration(configuration)
    correct = torch.empty(len(examples), dtype=torch.bool)
    total = 0.0
    for rows, batch in ordered_batches(examples, batch_size, pad_token_of(model)):
        batch = {k: v.to(accelerator.device) for k, v in batch.items()}
        labels = batch.pop("labels")
        with accelerator.autocast():
            logits = model(**batch).logits
        logits = logits.double() if logits.dtype == torch.float64 else logits.float()
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        correct[rows] = (logits.argmax(-1) == labels).cpu()
    return Evaluation(correct.double().mean().item(), total / len(examples), correct)


def new_accelerator() -> Accelerator:
    """Devices and precision: bfloat16 autocast on a GPU, the parameters' own dtype on a CPU."""
    on_gpu = torch.cuda.is_available()
    return Accelerator(mixed_precision="bf16" if on_gpu else "no")


def pad_token_of(model: CoaLora) -> int:
    """The id the model's tokenizer pads with."""
    return model.model.config.pad_token_id or 0
