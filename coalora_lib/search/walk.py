"""The coordinate walk: finite differences of the acquisition, one coordinate at a time (4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from coalora_lib.search.acquisition import improvement_over
from coalora_lib.search.moves import (
    Bits,
    Moves,
    Neighbourhood,
    bits_after,
    finite_differences,
    moves_from,
)
from coalora_lib.search.pareto import pareto_front, reference_point, staircase
from coalora_lib.search.surrogate import Surrogate

#: A move must raise the acquisition by more than this part of it: more than rounding does.
LEAST_GAIN = 1e-9
#: Where the largest value of a neighbourhood, by the area that all of the front dominates, is
#: less than this, values are compared through their logarithms.
UNDERFLOW = 1e-12


@dataclass(frozen=True)
class Step:
    """One move of a walk: which coordinate, by -1 or +1, and log EHVI after it."""

    coordinate: int
    change: int
    log_acquisition: float


@dataclass(frozen=True)
class Proposal:
    """Where the walks ended.

    Attributes:
        configurations: (proposals, d) int64, distinct and none of them scored before, in the
            order of their walks.
        acquisition: (proposals,) float64, the improvement expected of each alone.
        trace: the steps of every walk, one list a start.
        starts: (starts, d) where the walks began.
    """

    configurations: Tensor
    acquisition: Tensor
    trace: list[list[Step]] = field(repr=False)
    starts: Tensor = field(repr=False)


class Acquisition:
    """EHVI under a surrogate, of configurations and of all their neighbours.

    Args:
        surrogate: predicts losses.
        losses: (n,) of the scored configurations, which the front and the reference point (the
            worst plus a margin) are taken from.
        bits_of: mean bits of (k, d) integers.

    Attributes:
        front: (m, 2) of [loss, bits]; rows: (m,) which of the scored they are.
        reference: (loss, bits).
        area: between the best loss and bits and the reference: the unit of a large improvement.
    """

    def __init__(self, surrogate: Surrogate, losses: Tensor, bits_of: Bits) -> None:
        self.surrogate = surrogate
        self.bits_of = bits_of
        self._neighbourhood = Neighbourhood(surrogate)
        points = torch.stack([losses.double(), bits_of(surrogate.configurations)], dim=1)
        self.rows = pareto_front(points)
        self.front = points[self.rows]
        self.reference = reference_point(points)
        self._stairs = staircase(self.front, self.reference)
        best = points.amin(0).tolist()
        self.area = (self.reference[0] - best[0]) * (self.reference[1] - best[1])

    def __call__(self, configurations: Tensor, log: bool = False) -> Tensor:
        """(k, d) integers to (k,) expected improvements, or their logarithms."""
        mean, std = self.surrogate.predict(configurations)
        return self._improvement(mean, std, self.bits_of(configurations), log)

    def around(
        self, configurations: Tensor, moves: Moves, log: bool = False
    ) -> tuple[Tensor, Tensor]:
        """After each of k moves, (k,), and at the s configurations they start from, (s,)."""
        mean, std = self._neighbourhood.predict(configurations, moves)
        here = self.bits_of(configurations)
        bits = torch.cat([bits_after(self.bits_of, configurations, moves), here])
        values = self._improvement(mean, std, bits, log)
        return values[: len(moves.start)], values[len(moves.start) :]

    def gradient(self, configurations: Tensor) -> Tensor:
        """Finite differences at (s, d) configurations: (s, d) float64."""
        moves = moves_from(configurations, self.surrogate.choices)
        values, here = self.around(configurations, moves)
        return finite_differences(values, here, moves, configurations.shape[1])

    def _improvement(self, mean: Tensor, std: Tensor, bits: Tensor, log: bool) -> Tensor:
        return improvement_over(mean, std, bits.double(), self._stairs, log)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside: matrices of some dozen rows gain nothing from a second one, lose
    a hundredfold when other work keeps a core busy, and round differently with each number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def propose(
    configurations: Tensor,
    losses: Tensor,
    bits_of: Bits,
    choices: Sequence[int] | Tensor,
    starts: int = 5,
    max_steps: int | None = None,
    seed: int = 0,
    groups: Sequence[int] | Tensor | None = None,
) -> Proposal:
    """Propose configurations worth scoring: fit the surrogate, walk uphill from the front.

    Each walk starts from a member of the front. Where it ended is believed to score as predicted
    before the next walk begins: walks that know nothing of each other all climb the same hill.
    All of it runs on one thread, see :func:`one_thread`.

    Args:
        configurations: (n, d) integer indices of the scored configurations.
        losses: (n,) their task losses, all under the same adapters and batches.
        bits_of: mean bits of (k, d) integers: (k,). One with a method ``after``, such as
            :class:`~coalora_lib.configuration.MeanBits`, is much faster.
        choices: (d,) number of values of each coordinate.
        starts: walks, each from a different member of the current Pareto front (all of the
            front where it is smaller).
        max_steps: T, the longest walk; by default until no move improves.
        seed: of the draw of the starts.
        groups: coordinates that share a length scale, see :class:`Surrogate`.

    Raises:
        ValueError: as :class:`Surrogate`, or starts or max_steps is no positive integer.
    """
    for name, value in (("starts", starts), ("max_steps", max_steps)):
        if value is not None and (not float(value).is_integer() or value < 1):
            raise ValueError(f"{name}={value} must be an integer, at least 1")
    surrogate = Surrogate(configurations, losses, choices, groups)
    alone = acquisition = Acquisition(surrogate, losses, bits_of)
    generator = torch.Generator().manual_seed(seed)
    drawn = alone.rows[torch.randperm(len(alone.rows), generator=generator)[:starts]]
    begin, trace, found = surrogate.configurations[drawn], [], surrogate.configurations[:0]
    for start in tqdm(begin, "search walks", disable=None):
        end, (steps,) = walk(acquisition, start[None], max_steps)
        trace.append(steps)
        if steps:  # where a step leads was never scored, nor believed
            found = torch.cat([found, end])
            believed = torch.cat([losses, surrogate.predict(found)[0]])
            acquisition = Acquisition(surrogate.believing(found), believed, bits_of)
    return Proposal(found, alone(found), trace, begin)


def walk(
    acquisition: Acquisition, starts: Tensor, max_steps: int | None = None
) -> tuple[Tensor, list[list[Step]]]:
    """Move the coordinate with the largest finite difference by one, while that improves.

    All walks take their steps together. Of the moves that go uphill by the finite difference and
    do raise the acquisition, each walk takes the one with the largest difference; where the
    differences see none (both neighbours of a coordinate may be better), the best move that raises
    it; and it stops when no move does. Scored configurations are not stepped on, for nothing is
    learned by proposing one again; a walk that stands on one moves in any case.

    Args:
        acquisition: what to climb.
        starts: (s, d) integers.
        max_steps: T.

    Returns:
        Where the walks ended, (s, d), and the steps of each.
    """
    here, trace = starts.clone(), [[] for _ in starts]
    walking, taken = torch.arange(len(here)), 0
    while taken != max_steps:
        coordinate, change, value, moved = best_moves(acquisition, here[walking])
        walking = walking[moved]
        if len(walking) == 0:
            break
        here[walking, coordinate[moved]] += change[moved]
        for row, *step in zip(
            walking.tolist(), coordinate[moved], change[moved], value[moved], strict=True
        ):
            trace[row].append(Step(*(number.item() for number in step)))
        taken += 1
    return here, trace


def best_moves(acquisition: Acquisition, here: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next move of each of (s, d) walks, as :func:`walk` chooses it.

    Returns:
        Four (s,): coordinate, change, log of the acquisition after the move, and whether there
        is a move at all; where not, the others mean nothing.
    """
    moves = moves_from(here, acquisition.surrogate.choices)
    values, current, unit = _comparable(acquisition, here, moves)
    slopes = finite_differences(values, current, moves, here.shape[1])
    slope = slopes[moves.start, moves.coordinate]
    on_scored, to_scored = _meets_scored(acquisition.surrogate.configurations, here, moves)
    rises = values > current[moves.start] * (1 + LEAST_GAIN)
    allowed = ~to_scored & (rises | on_scored[moves.start])
    usable = allowed & (slope * moves.change > 0)
    unseen = torch.ones_like(on_scored)  # by the differences
    unseen[moves.start[usable]] = False
    rank = torch.where(usable, slope.abs(), -torch.inf)
    rank = torch.where(unseen[moves.start] & allowed, values, rank)
    table = torch.full((len(here), 2 * here.shape[1]), -torch.inf, dtype=rank.dtype)
    table[moves.start, 2 * moves.coordinate + (moves.change > 0)] = rank
    best, place = table.max(1)
    after = torch.zeros_like(table)
    after[moves.start, 2 * moves.coordinate + (moves.change > 0)] = values
    value = after.gather(1, place[:, None])[:, 0].log() + unit
    return place // 2, 2 * (place % 2) - 1, value, best > -torch.inf


def _comparable(
    acquisition: Acquisition, here: Tensor, moves: Moves
) -> tuple[Tensor, Tensor, Tensor]:
    """The acquisition after each move and at each walk, in a unit of each walk's own.

    What a walk does next does not depend on the unit; where the values underflow it is the
    largest of them, whose logarithm does not.

    Returns:
        (k,) after each move, (s,) at the walks, and (s,) the logarithm of the unit.
    """
    values, current = acquisition.around(here, moves)
    top = current.scatter_reduce(0, moves.start, values, "amax")
    if (top >= UNDERFLOW * acquisition.area).all():
        return values, current, torch.zeros_like(top)
    values, current = acquisition.around(here, moves, log=True)
    unit = current.scatter_reduce(0, moves.start, values, "amax")
    unit = torch.where(unit.isfinite(), unit, 0.0)
    return (values - unit[moves.start]).exp(), (current - unit).exp(), unit


def _meets_scored(scored: Tensor, here: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
    """Whether each walk stands on a scored configuration, (s,), and each move leads to one, (k,).

    A move leads to a scored configuration if that differs from where the walk stands in the moved
    coordinate alone, and by the move.
    """
    differs = here[:, None] != scored
    distance = differs.sum(2)
    walk_row, scored_row = (distance == 1).nonzero(as_tuple=True)
    coordinate = differs[walk_row, scored_row].int().argmax(1)
    change = scored[scored_row, coordinate] - here[walk_row, coordinate]
    near = torch.zeros(len(here), here.shape[1], 2, dtype=torch.bool)
    single = change.abs() == 1
    near[walk_row[single], coordinate[single], (change[single] > 0).long()] = True
    return (distance == 0).any(1), near[moves.start, moves.coordinate, (moves.change > 0).long()]
