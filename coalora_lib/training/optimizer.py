"""The optimizer of a run, its learning rates, and what it remembers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from coalora_lib.training.plan import TrainingPlan


def new_optimizer(
    parameters: Mapping[str, nn.Parameter], plan: TrainingPlan
) -> tuple[torch.optim.AdamW, LRScheduler]:
    """AdamW over the parameters, and the schedule of its learning rate."""
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
    )
    warm_up = round(plan.warmup * plan.steps)
    return optimizer, get_scheduler(plan.schedule, optimizer, warm_up, plan.steps)


def moments(optimizer: torch.optim.Optimizer, names: Iterable[str]) -> dict[str, Tensor]:
    """What an optimizer remembers of its parameters: "<kind>.<name>" to a tensor.

    Args:
        optimizer: such as AdamW, whose kinds are step, exp_avg and exp_avg_sq.
        names: of its parameters, in its order. One that never had a gradient has no moments.
    """
    names = list(names)
    return {
        f"{kind}.{names[number]}": value
        for number, kinds in optimizer.state_dict()["state"].items()
        for kind, value in kinds.items()
    }


def load_moments(
    optimizer: torch.optim.Optimizer,
    names: Iterable[str],
    found: dict[str, Tensor],
    learning_rates: Sequence[float],
) -> None:
    """Give an optimizer what :func:`moments` took, and the rate of each parameter group."""
    numbers = {name: number for number, name in enumerate(names)}
    state = optimizer.state_dict()
    state["state"] = {}
    for key, value in found.items():
        kind, name = key.split(".", 1)
        state["state"].setdefault(numbers[name], {})[kind] = value
    for group, rate in zip(state["param_groups"], learning_rates, strict=True):
        group["lr"] = rate
    optimizer.load_state_dict(state)
