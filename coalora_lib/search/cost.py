"""The second objective: the cost of a configuration, and which ones are not allowed."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: What configurations cost, known exactly; less is better: (k, d) integers to (k,) mean bits,
#: bytes, seconds. +inf marks a configuration that is not allowed: no strategy proposes it. A method
#: ``changes``, as of :class:`~coalora_lib.spaces.LayerCosts`, makes a walk much faster.
Cost = Callable[[Tensor], Tensor]


def finite_costs(cost_of: Cost, configurations: Tensor) -> Tensor:
    """The costs of configurations that must be allowed, (k,) float64; ValueError otherwise."""
    costs = cost_of(configurations).double()
    refuse_infinite(costs)
    return costs


def refuse_infinite(costs: Tensor) -> None:
    """Refuse (k,) costs that are not all finite: ValueError names the first."""
    if not all_finite(costs):
        row = int((~costs.isfinite()).nonzero()[0])
        raise ValueError(
            f"the cost of configuration {row} is {costs[row]:g}; it must be finite, since +inf "
            "marks a configuration that is not allowed"
        )


def all_finite(costs: Tensor) -> bool:
    """Whether all of (k,) costs are finite; by their sum, since every step of a walk asks."""
    return math.isfinite(costs.sum().item())


def is_allowed(costs: Tensor) -> Tensor:
    """Which of (k,) costs are not +inf: (k,) bool; ValueError for NaN or -inf."""
    allowed = costs.isfinite()
    if (wrong := ~allowed & (costs != torch.inf)).any():
        raise ValueError(f"a cost is {costs[wrong][0]:g}; allowed: finite values and +inf")
    return allowed


def swept(cost_of: Cost, inside: Tensor, rows: Tensor) -> Tensor:
    """Allowed configurations, (k, d), after they took over what is allowed of other rows, (k, d).

    One coordinate at a time, each value only if the result is allowed.
    """
    here = inside.clone()
    for coordinate in range(rows.shape[1]):
        moved = here.clone()
        moved[:, coordinate] = rows[:, coordinate]
        taken = is_allowed(cost_of(moved))
        here[taken] = moved[taken]
    return here
