"""A stored state, checked against the run that is to go on from it before anything takes it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from coalora_lib.validation import describe

Count = Annotated[int, Field(ge=0, le=2**62)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
#: What AdamW keeps of a parameter: the number of its steps, and two moments of its shape.
STEPS, MOMENTS = "step", ("exp_avg", "exp_avg_sq")


class StoredOptimizer(BaseModel):
    """Of AdamW, its parameters by number."""

    model_config = _STRICT

    state: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], dict[str, Tensor]]
    param_groups: list[dict[str, Any]]


class StoredRound(BaseModel):
    """A :class:`~coalora_lib.search.Round`."""

    model_config = _STRICT

    configurations: Tensor
    losses: Tensor
    costs: Tensor
    proposed: Count
    kept: Tensor


class StoredState(BaseModel):
    """What :meth:`coalora_lib.training.loop.Trainer.state_dict` gives, as a tree."""

    model_config = _STRICT

    step: Count
    losses: list[float]
    parameter: dict[str, Tensor]
    optimizer: StoredOptimizer
    schedule: dict[str, Any]
    draws: Tensor
    random: dict[str, Tensor]
    epoch: Count
    position: Count
    rounds: list[StoredRound]
    set: Tensor | None
    seconds: Seconds
    search_seconds: Seconds

    @classmethod
    def of(cls, tree: Mapping[str, Any], own: Mapping[str, Any], steps: int, rounds: int) -> dict:
        """A tree that a run can take, with the optimizer's parameters numbered.

        Args:
            tree: what was stored.
            own: the run's tree as it stands.
            steps: of the run's plan; rounds: its searches.

        Raises:
            ValueError: a part is missing, or not of the form of the run's own.
        """
        try:
            found = cls.model_validate(tree)
        except ValidationError as error:
            raise ValueError(describe(error)) from None
        if found.step > steps or len(found.losses) != found.step or len(found.rounds) > rounds:
            raise ValueError(
                f"step={found.step} with {len(found.losses)} losses and {len(found.rounds)} "
                f"searches, of a plan of {steps} steps and {rounds} searches"
            )
        for name in ("draws", "random", "schedule"):
            _alike(getattr(found, name), own[name], name)
        groups = own["optimizer"]["param_groups"]
        _alike(found.optimizer.param_groups, groups, "optimizer.param_groups")
        moments = {int(number): each for number, each in found.optimizer.state.items()}
        _check_moments(moments, list(own["parameter"].values()))
        if own["set"] is not None:
            _check_set(found.set, own["set"])
        optimizer = {"state": moments, "param_groups": found.optimizer.param_groups}
        return dict(tree) | {"optimizer": optimizer}


def _alike(there: Any, own: Any, path: str) -> None:
    """Refuse a tree that differs from one's own in more than numbers."""
    if isinstance(own, Tensor):
        if not isinstance(there, Tensor) or (there.dtype, there.shape) != (own.dtype, own.shape):
            raise ValueError(f"{path} must be {own.dtype} of shape {tuple(own.shape)}")
    elif isinstance(own, Mapping):
        if not isinstance(there, Mapping) or there.keys() != own.keys():
            raise ValueError(f"{path} must have the entries {', '.join(own)}")
        for name, each in own.items():
            _alike(there[name], each, f"{path}.{name}")
    elif isinstance(own, Sequence) and not isinstance(own, str):
        if not isinstance(there, Sequence) or len(there) != len(own):
            raise ValueError(f"{path} must have {len(own)} entries")
        for place, each in enumerate(own):
            _alike(there[place], each, f"{path}.{place}")
    elif type(there) is not type(own) and {type(there), type(own)} != {int, float}:
        raise ValueError(f"{path}={there!r:.60} must be of type {type(own).__name__}")


def _check_moments(moments: Mapping[int, Mapping[str, Tensor]], own: Sequence[Tensor]) -> None:
    for number, each in moments.items():
        if number >= len(own) or each.keys() != {STEPS, *MOMENTS} or each[STEPS].ndim:
            raise ValueError(f"optimizer.state.{number} does not belong to a parameter of the run")
        for name in MOMENTS:
            _alike(each[name], own[number].detach(), f"optimizer.state.{number}.{name}")


def _check_set(there: Tensor | None, own: Tensor) -> None:
    if there is None or there.dtype != own.dtype or there.shape[1:] != own.shape[1:]:
        raise ValueError(f"set must be {own.dtype} of {own.shape[1]} columns")
    if not len(there):
        raise ValueError("set has no configuration")
