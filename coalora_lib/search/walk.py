"""The coordinate walk: finite differences of the acquisition, one coordinate at a time (4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from coalora_lib.search.acquisition import expected_hypervolume_improvement
from coalora_lib.search.pareto import pareto_front, reference_point
from coalora_lib.search.surrogate import Surrogate

Acquisition = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """One move of a walk: which coordinate, by -1 or +1, and the acquisition after it."""

    coordinate: int
    change: int
    acquisition: float


@dataclass(frozen=True)
class Proposal:
    """Where the walks ended.

    Attributes:
        configurations: (proposals, d) int64, distinct and none of them scored before.
        acquisition: (proposals,) float64.
        trace: the steps of every walk, one list a start.
        starts: (starts, d) where the walks began.
    """

    configurations: Tensor
    acquisition: Tensor
    trace: list[list[Step]] = field(repr=False)
    starts: Tensor = field(repr=False)


def neighbours(configuration: Tensor, choices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All configurations one step away: (k, d), the coordinate moved (k,), by -1 or +1 (k,)."""
    moves = torch.stack([-torch.ones_like(configuration), torch.ones_like(configuration)], 1)
    moved = configuration[:, None] + moves
    coordinate, side = ((moved >= 0) & (moved < choices[:, None])).nonzero(as_tuple=True)
    change = moves[coordinate, side]
    rows = configuration.repeat(len(coordinate), 1)
    rows[torch.arange(len(coordinate)), coordinate] += change
    return rows, coordinate, change


def finite_differences(
    acquisition: Acquisition, configuration: Tensor, choices: Sequence[int] | Tensor
) -> Tensor:
    """The gradient's stand-in: central differences with delta = 1, one-sided at a bound.

    Args:
        acquisition: (n, d) integers to (n,).
        configuration: (d,) integers.
        choices: (d,) number of values of each coordinate.

    Returns:
        (d,) float64: (a(C + e_i) - a(C - e_i)) / 2 inside, the true one-sided difference at a
        bound, and 0 for a coordinate with one value.
    """
    rows, coordinate, change = neighbours(configuration, torch.as_tensor(choices))
    values = acquisition(torch.cat([configuration[None], rows]))
    return _differences(values[1:], values[0], coordinate, change, len(configuration))


def _differences(
    values: Tensor, here: Tensor, coordinate: Tensor, change: Tensor, dimension: int
) -> Tensor:
    """The mean over a coordinate's sides of the difference to each: central where there are two."""
    total, sides = torch.zeros(2, dimension, dtype=torch.float64)
    total.index_add_(0, coordinate, (values - here) * change)
    sides.index_add_(0, coordinate, torch.ones_like(values))
    return total / sides.clamp(min=1)


def walk(
    acquisition: Acquisition, start: Tensor, choices: Tensor, max_steps: int
) -> tuple[Tensor, list[Step]]:
    """Move the coordinate with the largest finite difference by one, while that improves.

    Of the moves that go uphill by the finite difference and do raise the acquisition, each step
    takes the one with the largest difference; the walk stops when there is none.

    Args:
        acquisition: (n, d) integers to (n,).
        start: (d,) integers.
        choices: (d,) number of values of each coordinate.
        max_steps: T.

    Returns:
        Where it ended, (d,), and the steps.
    """
    here, value, steps = start, acquisition(start[None])[0], []
    for _ in range(max_steps):
        rows, coordinate, change = neighbours(here, choices)
        values = acquisition(rows)
        slope = _differences(values, value, coordinate, change, len(here))[coordinate]
        usable = (values > value) & (slope * change > 0)
        if not usable.any():
            break
        best = torch.where(usable, slope.abs(), -torch.inf).argmax()
        here, value = rows[best], values[best]
        steps.append(Step(int(coordinate[best]), int(change[best]), float(value)))
    return here, steps


def propose(
    configurations: Tensor,
    losses: Tensor,
    bits_of: Callable[[Tensor], Tensor],
    choices: Sequence[int] | Tensor,
    starts: int = 5,
    max_steps: int | None = None,
    seed: int = 0,
) -> Proposal:
    """Propose configurations worth scoring: fit the surrogate, walk uphill from the front.

    Args:
        configurations: (n, d) integer indices of the scored configurations.
        losses: (n,) their task losses, all under the same adapters and batches.
        bits_of: mean bits of (k, d) integers: (k,).
        choices: (d,) number of values of each coordinate.
        starts: walks, each from a different member of the current Pareto front (all of the
            front where it is smaller).
        max_steps: T, the longest walk; d by default.
        seed: of the draw of the starts.

    Raises:
        ValueError: as :class:`Surrogate`, or starts is not positive.
    """
    if starts < 1:
        raise ValueError(f"starts={starts} must be at least 1")
    choices = torch.as_tensor(choices)
    surrogate = Surrogate(configurations, losses, choices)
    points = torch.stack([losses.double(), bits_of(configurations)], dim=1)
    reference = reference_point(points)

    def acquisition(candidates: Tensor) -> Tensor:
        mean, std = surrogate.predict(candidates)
        bits = bits_of(candidates)
        return expected_hypervolume_improvement(mean, std, bits, points, reference)

    generator = torch.Generator().manual_seed(seed)
    front = pareto_front(points)
    drawn = front[torch.randperm(len(front), generator=generator)[:starts]]
    seen = set(map(tuple, configurations.tolist()))
    ends, traces = [], []
    for row in tqdm(drawn.tolist(), "search walks", disable=None):
        end, steps = walk(acquisition, configurations[row], choices, max_steps or len(choices))
        traces.append(steps)
        if tuple(end.tolist()) not in seen:
            seen.add(tuple(end.tolist()))
            ends.append(end)
    found = torch.stack(ends) if ends else configurations[:0]
    values = acquisition(found) if ends else torch.zeros(0, dtype=torch.float64)
    return Proposal(found, values, traces, configurations[drawn])
