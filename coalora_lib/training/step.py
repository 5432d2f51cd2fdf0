"""One pass of a training step, and its targets besides the labels."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from coalora_lib.adapter import CoaLora
from coalora_lib.kinds import TaskKind
from coalora_lib.training.plan import TrainingPlan
from coalora_lib.training.training_set import Drawn


class PassResult(NamedTuple):
    """What a pass gives, detached: a scalar, and logits if they were asked for."""

    loss: Tensor
    logits: Tensor | None


#: Adds a batch's gradients to those of the parameters. It takes the model's arguments, labels among
#: them; logits to learn from, or None; and whether to return its own logits. They take memory until
#: they are let go of, of a causal model a lot.
TrainingPass = Callable[[dict[str, Tensor], Tensor | None, bool], PassResult]


def forward_backward(
    model: Callable, plan: TrainingPlan, accelerator: Accelerator, objective: TaskKind
) -> TrainingPass:
    """The pass of a model under whatever configuration it has:

        loss = (1 - a) task loss + a T^2 KL(target || logits)

    with a ``plan.distillation`` where there is a target and 0 elsewhere, T ``plan.temperature``.
    Gradients are those of loss / ``plan.configurations_per_step``.
    """

    def run(batch: dict[str, Tensor], target: Tensor | None, keep_logits: bool) -> PassResult:
        with accelerator.autocast():
            output = model(**objective.training_inputs(batch))
        loss = objective.loss(output, batch)
        if target is not None:
            share = plan.distillation
            student, teacher = (
                objective.distributions(logits, batch) for logits in (output.logits, target)
            )
            soft = distillation_loss(student, teacher, plan.temperature)
            loss = (1 - share) * loss + share * soft
        (loss / plan.configurations_per_step).backward()
        return PassResult(loss.detach(), output.logits.detach() if keep_logits else None)

    return run


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened distributions (Hinton et al., arXiv 1503.02531).

    Logits are (predictions, classes); the mean is over the predictions.
    """
    soft_student = F.log_softmax(_at_least_float(student) / temperature, dim=-1)
    soft_teacher = F.log_softmax(_at_least_float(teacher) / temperature, dim=-1)
    divergence = F.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def _at_least_float(logits: Tensor) -> Tensor:
    return logits if logits.element_size() >= 4 else logits.float()


class Distillation:
    """Which configurations a step has, and whose logits its passes learn from: ``plan.teacher``'s.

    ValueError if a teacher is missing or not wanted, or the model cannot teach itself.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        model: nn.Module,
        teacher: nn.Module | None,
        accelerator: Accelerator,
        objective: TaskKind,
    ) -> None:
        if (teacher is not None) != (plan.teacher == "model"):
            needs = "has no use for a" if teacher is not None else "needs a"
            raise ValueError(f"teacher={plan.teacher!r} in the plan {needs} teacher model")
        self._accelerator, self._objective = accelerator, objective
        self._teacher = None if teacher is None else teacher.to(accelerator.device).eval()
        self._finest = []
        if plan.teacher == "self":
            if not isinstance(model, CoaLora):
                raise ValueError(
                    'teacher="self" needs a model with configurations; a '
                    f"{type(model).__name__} has none"
                )
            finest = [model.space.finest(shape) for shape in model.shapes]
            self._finest = [Drawn(finest, "the finest configuration")]

    def configurations(self, draw: Callable[[int], list[Drawn]], count: int) -> list[Drawn]:
        """Those of a step's passes; ``draw`` draws so many from the set."""
        return [*self._finest, *draw(count - len(self._finest))]

    @torch.no_grad()
    def target(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Logits that the first pass over a batch learns from, of the shape of its own."""
        if self._teacher is None:
            return None
        with self._accelerator.autocast():
            return self._teacher(**self._objective.inputs(batch)).logits

    def teaches(self, position: int) -> bool:
        """Whether the passes behind the one at this position learn from its logits."""
        return position == 0 and bool(self._finest)
