"""One pass of a training step: the loss of a batch, and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from accelerate import Accelerator
from torch import Tensor

from coalora_lib.training.losses import distillation_loss
from coalora_lib.training.plan import TrainingPlan


class PassResult(NamedTuple):
    """What a pass gives, detached.

    Attributes:
        loss: scalar.
        logits: (batch, classes), or (batch, length, vocabulary) of a causal model; None unless
            they were asked for.
    """

    loss: Tensor
    logits: Tensor | None


class TrainingPass(Protocol):
    """A function that adds a batch's gradients to those of the parameters.

    Args:
        batch: the model's arguments, labels among them.
        target: logits to learn from beside the labels, or None.
        keep_logits: return the logits too. They take memory until they are let go of, of a
            causal model a lot.
    """

    def __call__(
        self, batch: dict[str, Tensor], target: Tensor | None, keep_logits: bool
    ) -> PassResult: ...


def forward_backward(model: Callable, plan: TrainingPlan, accelerator: Accelerator) -> TrainingPass:
    """The pass of a model under whatever configuration it has:

        loss = (1 - a) task loss + a T^2 KL(target || logits)

    with a ``plan.distillation`` where there is a target and 0 elsewhere, T ``plan.temperature``.
    Gradients are those of loss / ``plan.configurations_per_step``.

    Args:
        model: takes a batch as keywords, gives ``.loss`` and ``.logits``.
        plan: of the run.
        accelerator: of the precision it runs in.
    """

    def run(batch: dict[str, Tensor], target: Tensor | None, keep_logits: bool) -> PassResult:
        with accelerator.autocast():
            output = model(**batch)
        loss = output.loss
        if target is not None:
            share = plan.distillation
            soft = distillation_loss(output.logits, target, batch["labels"], plan.temperature)
            loss = (1 - share) * loss + share * soft
        (loss / plan.configurations_per_step).backward()
        return PassResult(loss.detach(), output.logits.detach() if keep_logits else None)

    return run
