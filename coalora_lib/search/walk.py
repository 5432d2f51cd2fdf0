"""The coordinate walk: finite differences of the acquisition, one coordinate at a time (4.2)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from coalora_lib.search.acquisition import improvement_over
from coalora_lib.search.arrays import as_numbers
from coalora_lib.search.cost import Cost, finite_costs
from coalora_lib.search.moves import Moves, Neighbourhood, allowed_moves, finite_differences
from coalora_lib.search.pareto import pareto_front, reference_point, staircase
from coalora_lib.search.surrogate import Surrogate

#: A move must raise the acquisition by more than this part of it, far above the rounding of float64
#: (predictions after moves agree with those of built rows to 1e-10, tests/search/test_moves.py).
LEAST_GAIN = 1e-9
#: Where the largest value of a neighbourhood, divided by :attr:`Acquisition.area`, is less than
#: this, values are compared through their logarithms. Both forms lead to the same walk; any value
#: far above the smallest float64, 1e-308, serves.
UNDERFLOW = 1e-12


@dataclass(frozen=True)
class Step:
    """One move of a walk."""

    coordinate: int  #: that moves
    change: int  #: -1 or +1
    log_acquisition: float  #: log of EHVI after it


@dataclass(frozen=True)
class Proposal:
    """Where the walks ended."""

    configurations: Tensor  #: (proposals, d) int64, distinct and new, in the order of their walks
    acquisition: Tensor  #: (proposals,) float64, the improvement of each by itself
    trace: list[list[Step]] = field(repr=False)  #: the steps of every walk
    restarts: Tensor = field(repr=False)  #: (restarts, d), where the walks began


class Acquisition:
    """EHVI under a surrogate, of configurations and of all their neighbours.

    The losses are those of the surrogate's configurations, (n,), whose costs must be finite.

    Attributes:
        front: (m, 2) of [loss, cost]; rows: (m,) which of the scored they are.
        reference: (loss, cost).
        area: between the least loss and cost and the reference, the unit of a large improvement.
    """

    def __init__(self, surrogate: Surrogate, losses: Tensor, cost_of: Cost) -> None:
        self.surrogate = surrogate
        self.cost_of = cost_of
        self._neighbourhood = Neighbourhood(surrogate)
        points = torch.stack(
            [losses.double(), finite_costs(cost_of, surrogate.configurations)], dim=1
        )
        self.rows = pareto_front(points)
        self.front = points[self.rows]
        self.reference = reference_point(points)
        self._stairs = staircase(self.front, self.reference)
        best = points.amin(0).tolist()
        self.area = (self.reference[0] - best[0]) * (self.reference[1] - best[1])

    def __call__(self, configurations: Tensor, log: bool = False) -> Tensor:
        """(k, d) integers to (k,) expected improvements, or their logarithms."""
        mean, std = self.surrogate.predict(configurations)
        return self._improvement(mean, std, self.cost_of(configurations).double(), log)

    def around(
        self, configurations: Tensor, moves: Moves, costs: Tensor, log: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The acquisition after each of k moves, (k,), and at the (s, d) configurations, (s,).

        ``costs`` are (k + s,): after the moves, then at the configurations.
        """
        mean, std = self._neighbourhood.predict(configurations, moves)
        values = self._improvement(mean, std, costs, log)
        return values[: len(moves.start)], values[len(moves.start) :]

    def gradient(self, configurations: Tensor) -> Tensor:
        """Finite differences at (s, d) allowed configurations: (s, d) float64."""
        moves, costs = allowed_moves(self.cost_of, configurations, self.surrogate.cardinalities)
        values, here = self.around(configurations, moves, costs)
        return finite_differences(values, here, moves, configurations.shape[1])

    def _improvement(self, mean: Tensor, std: Tensor, cost: Tensor, log: bool) -> Tensor:
        return improvement_over(mean, std, cost, self._stairs, log)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside.

    Matrices of a few dozen rows are no faster on two threads, and up to a hundred times slower
    while other work keeps a core busy. The rounding depends on the number of threads too.
    """
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
    cost_of: Cost,
    cardinalities: Sequence[int] | Tensor,
    restarts: int = 5,
    max_steps: int | None = None,
    seed: int = 0,
    groups: Sequence[int] | Tensor | None = None,
) -> Proposal:
    """Propose configurations worth scoring: fit the surrogate, walk uphill from the front.

    Each walk starts from a member of the front. Before the next one begins, the surrogate is
    conditioned on where it ended (:meth:`Surrogate.condition_on`): independent walks would all
    climb the same hill. All of it runs on one thread.

    Args:
        configurations: (n, d) integer indices of the scored configurations.
        losses: (n,) their task losses, all under the same adapters and batches.
        cost_of: (k, d) integers to (k,), finite for the scored; what costs +inf is never proposed.
        cardinalities, groups: see :class:`Surrogate`.
        restarts: walks, each from another member of the front (all of it where it is smaller).
        max_steps: T, the longest walk; by default until no move improves.
        seed: for the draw of the members that the walks start from.

    Raises:
        ValueError: as :class:`Surrogate` and :class:`Acquisition`, or restarts or max_steps is not
            a positive integer.
    """
    for name, value in (("restarts", restarts), ("max_steps", max_steps)):
        if value is not None and (not float(value).is_integer() or value < 1):
            raise ValueError(f"{name}={value} must be an integer, at least 1")
    losses = as_numbers("losses", losses)
    surrogate = Surrogate(configurations, losses, cardinalities, groups)
    alone = acquisition = Acquisition(surrogate, losses, cost_of)
    generator = torch.Generator().manual_seed(seed)
    drawn = alone.rows[torch.randperm(len(alone.rows), generator=generator)[:restarts]]
    begin, trace, found = surrogate.configurations[drawn], [], surrogate.configurations[:0]
    for start in tqdm(begin, "search walks", disable=None):
        end, (steps,) = walk(acquisition, start[None], max_steps)
        trace.append(steps)
        if steps:  # no step leads to what is scored or conditioned on
            found = torch.cat([found, end])
            predicted = torch.cat([losses, surrogate.predict(found)[0]])
            acquisition = Acquisition(surrogate.condition_on(found), predicted, cost_of)
    return Proposal(found, alone(found), trace, begin)


def walk(
    acquisition: Acquisition, restarts: Tensor, max_steps: int | None = None
) -> tuple[Tensor, list[list[Step]]]:
    """Move the coordinate with the largest finite difference by one, while that improves.

    All walks, from (s, d) allowed restarts, take their steps together, at most T each. A walk
    considers the moves that go uphill by the finite difference and raise the acquisition, and
    takes the one with the largest difference. If there is none (both neighbours of a coordinate
    may be better, with a difference of zero), it takes the move that raises the acquisition most,
    and it stops when no move does. No move leads to a configuration that is scored (it would teach
    nothing) or not allowed; a walk that stands on a scored one moves even if the acquisition falls.

    Returns:
        Where the walks ended, (s, d), and the steps of each.

    Raises:
        ValueError: a walk begins where it is not allowed.
    """
    here = restarts.clone()
    trace: list[list[Step]] = [[] for _ in restarts]
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

    Coordinate, change, log of the acquisition after the move, and whether there is a move at all,
    (s,) each.
    """
    moves, costs = allowed_moves(acquisition.cost_of, here, acquisition.surrogate.cardinalities)
    values, current, unit = _comparable(acquisition, here, moves, costs)
    slopes = finite_differences(values, current, moves, here.shape[1])
    slope = slopes[moves.start, moves.coordinate]
    on_scored, to_scored = _meets_scored(acquisition.surrogate.configurations, here, moves)
    rises = values > current[moves.start] * (1 + LEAST_GAIN)
    eligible = ~to_scored & (rises | on_scored[moves.start])
    uphill = eligible & (slope * moves.change > 0)
    without_uphill = torch.ones_like(on_scored)
    without_uphill[moves.start[uphill]] = False
    rank = torch.where(uphill, slope.abs(), -torch.inf)
    rank = torch.where(without_uphill[moves.start] & eligible, values, rank)
    table = torch.full((len(here), 2 * here.shape[1]), -torch.inf, dtype=rank.dtype)
    table[moves.start, 2 * moves.coordinate + (moves.change > 0)] = rank
    best, place = table.max(1)
    after = torch.zeros_like(table)
    after[moves.start, 2 * moves.coordinate + (moves.change > 0)] = values
    value = after.gather(1, place[:, None])[:, 0].log() + unit
    return place // 2, 2 * (place % 2) - 1, value, best > -torch.inf


def _comparable(
    acquisition: Acquisition, here: Tensor, moves: Moves, costs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The acquisition after each move, (k,), and at each walk, (s,), in a unit of the walk's own.

    The next move of a walk does not depend on the unit. Where the values underflow, the unit is the
    largest of them; its logarithm is returned too, (s,).
    """
    values, current = acquisition.around(here, moves, costs)
    top = current.scatter_reduce(0, moves.start, values, "amax")
    if (top >= UNDERFLOW * acquisition.area).all():
        return values, current, torch.zeros_like(top)
    values, current = acquisition.around(here, moves, costs, log=True)
    unit = current.scatter_reduce(0, moves.start, values, "amax")
    unit = torch.where(unit.isfinite(), unit, 0.0)
    return (values - unit[moves.start]).exp(), (current - unit).exp(), unit


def _meets_scored(scored: Tensor, here: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
    """Whether each walk stands on a scored configuration, (s,), and each move leads to one, (k,).

    A move does if the scored one differs from where the walk stands by that move alone.
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
