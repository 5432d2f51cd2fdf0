"""What a step's passes learn from beside the labels: nothing, a teacher, or the model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from coalora_lib.adapter import CoaLora
from coalora_lib.training.plan import TrainingPlan
from coalora_lib.training.training_set import Drawn


class Distillation(Protocol):
    """Which configurations a step has, and which logits its passes learn from."""

    def configurations(self, draw: Callable[[int], list[Drawn]], count: int) -> list[Drawn]:
        """Those of a step's ``count`` passes, in order; ``draw`` draws as many from the set."""

    def target(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Logits that the first pass over the batch learns from, of the shape of its own."""

    def teaches(self, position: int) -> bool:
        """Whether the passes behind the one at this position learn from its logits."""


class NoTeacher:
    """Passes learn from the labels alone."""

    def configurations(self, draw: Callable[[int], list[Drawn]], count: int) -> list[Drawn]:
        return draw(count)

    def target(self, batch: dict[str, Tensor]) -> Tensor | None:
        return None

    def teaches(self, position: int) -> bool:
        return False


class ModelTeacher(NoTeacher):
    """All passes learn from another model.

    Args:
        model: on the device of the batches; set to evaluation mode.
        accelerator: of the precision it runs in.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        self._model, self._accelerator = model.eval(), accelerator

    @torch.no_grad()
    def target(self, batch: dict[str, Tensor]) -> Tensor:
        with self._accelerator.autocast():
            return self._model(**{k: v for k, v in batch.items() if k != "labels"}).logits


class SelfTeacher(NoTeacher):
    """The first pass is under the finest configuration, and teaches the others.

    Args:
        model: that is trained.
    """

    def __init__(self, model: CoaLora) -> None:
        finest = [model.space.finest(shape) for shape in model.shapes]
        self._finest = Drawn(finest, "the finest configuration")

    def configurations(self, draw: Callable[[int], list[Drawn]], count: int) -> list[Drawn]:
        return [self._finest, *draw(count - 1)]

    def teaches(self, position: int) -> bool:
        return position == 0


def new_distillation(
    plan: TrainingPlan, model: nn.Module, teacher: nn.Module | None, accelerator: Accelerator
) -> Distillation:
    """What ``plan.teacher`` names.

    Args:
        plan: of the run.
        model: the model that is trained.
        teacher: for "model"; it is moved to the accelerator's device.
        accelerator: of the run.

    Raises:
        ValueError: there is no teacher where one is needed, or one where none is; or "self" is to
            teach a model without configurations.
    """
    if (teacher is not None) != (plan.teacher == "model"):
        needs = "has no use for a" if teacher is not None else "needs a"
        raise ValueError(f"teacher={plan.teacher!r} in the plan {needs} teacher model")
    if plan.teacher == "none":
        return NoTeacher()
    if plan.teacher == "model":
        assert teacher is not None  # as was checked
        return ModelTeacher(teacher.to(accelerator.device), accelerator)
    if not isinstance(model, CoaLora):
        raise ValueError(
            f'teacher="self" needs a model with configurations; a {type(model).__name__} has none'
        )
    return SelfTeacher(model)
