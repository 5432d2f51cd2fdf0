"""Moves of one coordinate: the neighbours of several configurations and their predicted losses."""

from typing import NamedTuple

import torch
from torch import Tensor

from coalora_lib.search.cost import Cost, all_finite, is_allowed, refuse_infinite
from coalora_lib.search.surrogate import Surrogate


class Moves(NamedTuple):
    """Moves of one coordinate by one, k in all: row of what moves, coordinate, and -1 or +1."""

    start: Tensor
    coordinate: Tensor
    change: Tensor

    def applied(self, configurations: Tensor) -> Tensor:
        """The configurations after each single move: (k, d)."""
        rows = configurations[self.start]
        rows[torch.arange(len(rows)), self.coordinate] += self.change
        return rows


def moves_from(configurations: Tensor, cardinalities: Tensor) -> Moves:
    """Every move that stays in range, of each of (s, d) configurations."""
    inside = torch.stack([configurations > 0, configurations < cardinalities - 1], dim=2)
    start, coordinate, side = inside.nonzero(as_tuple=True)
    return Moves(start, coordinate, 2 * side - 1)


def finite_differences(values: Tensor, here: Tensor, moves: Moves, dimension: int) -> Tensor:
    """A gradient in integers: (f(C + e_i) - f(C - e_i)) / 2, (s, d), of s configurations.

    One-sided where only one move is given (the other leaves the range or is not allowed), 0 where
    none is. ``values`` are (k,) after the moves, ``here`` (s,) at the configurations.
    """
    total, sides = torch.zeros(2, len(here) * dimension, dtype=values.dtype)
    place = moves.start * dimension + moves.coordinate
    total.index_add_(0, place, (values - here[moves.start]) * moves.change)
    sides.index_add_(0, place, torch.ones_like(values))
    return (total / sides.clamp(min=1)).reshape(len(here), dimension)


def costs_after(cost_of: Cost, configurations: Tensor, moves: Moves, here: Tensor) -> Tensor:
    """The cost after each of the moves, (k,) float64; ``here`` are the costs before, (s,)."""
    if hasattr(cost_of, "changes"):
        return here[moves.start] + cost_of.changes(configurations, *moves).double()
    return cost_of(moves.applied(configurations)).double()


def allowed_moves(
    cost_of: Cost, configurations: Tensor, cardinalities: Tensor
) -> tuple[Moves, Tensor]:
    """Every move in range of (s, d) allowed configurations to another, k in all; ValueError if not.

    With (k + s,) float64 costs: after each move, then at the configurations.
    """
    here = cost_of(configurations).double()
    moves = moves_from(configurations, cardinalities)
    after = costs_after(cost_of, configurations, moves, here)
    costs = torch.cat([after, here])
    if not all_finite(costs):
        refuse_infinite(here)
        allowed = is_allowed(after)
        moves = Moves(*(part[allowed] for part in moves))
        costs = torch.cat([after[allowed], here])
    return moves, costs


class Neighbourhood:
    """The surrogate's predictions after single moves, without a kernel evaluation.

    The kernel is a product over coordinates, so a move of one coordinate multiplies the
    covariance with every scored configuration by a ratio of two factors, which depends only on
    the coordinate, its value and the direction. One table holds all ratios, (d, values, 2, n).
    """

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate = surrogate
        self._log_factors = surrogate.log_factors()
        steps = self._log_factors.diff(dim=1)
        ratios = torch.zeros(*self._log_factors.shape[:2], 2, steps.shape[-1], dtype=steps.dtype)
        ratios[:, 1:, 0] = (-steps).exp()
        ratios[:, :-1, 1] = steps.exp()
        self._values = ratios.shape[1]
        self._ratios = ratios.flatten(0, 2)

    def covariances(self, configurations: Tensor) -> Tensor:
        """(s, d) integers to (s, n) covariances with the scored configurations."""
        coordinates = torch.arange(configurations.shape[1])
        return self._log_factors[coordinates, configurations].sum(1).exp()

    def predict(self, configurations: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the loss: (k + s,) float64 each.

        After each of k moves of (s, d) configurations by itself, then at the configurations.
        """
        covariances = self.covariances(configurations)
        value = configurations[moves.start, moves.coordinate]
        row = (moves.coordinate * self._values + value) * 2 + (moves.change > 0)
        moved = self._ratios.index_select(0, row)
        moved *= covariances.index_select(0, moves.start)
        return self._surrogate.posterior(torch.cat([moved, covariances]))
