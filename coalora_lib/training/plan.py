"""The plan of a training run, and its results."""

from dataclasses import dataclass
from typing import Literal, get_args

from coalora_lib.search import Round
from coalora_lib.spaces import Configuration
from coalora_lib.validation import check_number

Schedule = Literal["cosine", "linear"]
Teacher = Literal["none", "model", "self"]
#: Larger numbers are mistakes; generators of random numbers take seeds up to here and beyond.
MOST = 2**62


@dataclass(frozen=True)
class TrainingPlan:
    """How to train; every method of a comparison gets the same plan.

    Each configuration of a step sees the same examples; their losses are averaged.

    Attributes:
        teacher: the model that the passes learn from, in addition to the labels. "none": nothing,
            and ``distillation`` is 0. "model": :func:`~coalora_lib.training.train`'s ``teacher``.
            "self": the first pass of a step is under the finest configuration, and the others learn
            from its logits, so that the teacher costs no passes of its own (Yu and Huang 2019,
            arXiv 1903.05134, section 3.3).
        cuda_graphs: capture the passes on a single GPU, for models so small that the launch of
            kernels takes most of the time. Without effect on a CPU and over several processes.

    Raises:
        TypeError: a number is none, or has a fraction where none may be.
        ValueError: a value is out of range, or distillation and teacher do not fit together.
    """

    steps: int  #: of the optimizer
    batch_size: int = 32  #: examples per step, over all processes together
    configurations_per_step: int = 2  #: passes, each under a configuration of its own
    learning_rate: float = 1e-3  #: the peak, after the warm-up
    schedule: Schedule = "cosine"  #: how it falls to zero after that
    warmup: float = 0.1  #: as a part of the steps, 0 to 1
    weight_decay: float = 0.01  #: AdamW's
    max_grad_norm: float = 1.0  #: gradients are clipped to it
    distillation: float = 0.0  #: weight of the teacher's term in the loss, 0 to 1
    teacher: Teacher = "none"
    temperature: float = 2.0  #: softens both distributions in the teacher's term
    cuda_graphs: bool = False
    seed: int = 0  #: of the order of examples and configurations, and of dropout

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "configurations_per_step", "seed"):
            check_number(name, getattr(self, name), int(name != "seed"), MOST, whole=True)
        for name in ("learning_rate", "weight_decay", "max_grad_norm"):
            check_number(name, getattr(self, name), 0, MOST)
        for name in ("warmup", "distillation"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("temperature", self.temperature, 1 / MOST, MOST)
        for name, allowed in (("schedule", get_args(Schedule)), ("teacher", get_args(Teacher))):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(
                    f"{name}={value!r:.80} is not known; allowed: {', '.join(allowed)}"
                )
        if bool(self.distillation) != (self.teacher != "none"):
            raise ValueError(
                f"distillation={self.distillation} with teacher={self.teacher!r}; allowed: a "
                'distillation above 0 with teacher "model" or "self", or 0 with "none"'
            )
        if self.teacher == "self" and self.configurations_per_step < 2:
            raise ValueError(
                'teacher="self" needs at least 2 configurations_per_step: '
                "one is the teacher of the others"
            )


@dataclass(frozen=True)
class History:
    """What a run leaves beside the trained model."""

    losses: list[float]  #: of each step, averaged over its configurations
    configurations: list[Configuration]  #: the training set at the end
    rounds: list[Round]  #: the searches, in order
    #: Wall time, and how much of it were searches; of a run that went on from a checkpoint, that up
    #: to the checkpoint is counted too.
    seconds: float = 0.0
    search_seconds: float = 0.0
