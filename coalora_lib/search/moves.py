"""Steps of one coordinate: all neighbours of several configurations, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from coalora_lib.search.surrogate import Surrogate

#: Mean bits of (k, d) integers, (k,). It may also have a method ``after(configurations, *moves)``
#: that gives the bits after each of the moves faster than by building the rows.
Bits = Callable[[Tensor], Tensor]


class Moves(NamedTuple):
    """Single steps from several configurations, k in all.

    Attributes:
        start: (k,) the row of the configuration that moves.
        coordinate: (k,) the coordinate that moves.
        change: (k,) by -1 or +1.
    """

    start: Tensor
    coordinate: Tensor
    change: Tensor

    def applied(self, configurations: Tensor) -> Tensor:
        """The configurations after each move by itself: (k, d)."""
        rows = configurations[self.start]
        rows[torch.arange(len(rows)), self.coordinate] += self.change
        return rows


def moves_from(configurations: Tensor, choices: Tensor) -> Moves:
    """Every move that stays inside, of each of (s, d) configurations."""
    inside = torch.stack([configurations > 0, configurations < choices - 1], dim=2)
    start, coordinate, side = inside.nonzero(as_tuple=True)
    return Moves(start, coordinate, 2 * side - 1)


def finite_differences(values: Tensor, here: Tensor, moves: Moves, dimension: int) -> Tensor:
    """The gradient's stand-in: central differences with delta = 1, one-sided at a bound.

    Args:
        values: (k,) the function after each of the moves from :func:`moves_from`.
        here: (s,) the function at the configurations that move.
        moves: the moves.
        dimension: d.

    Returns:
        (s, d): (f(C + e_i) - f(C - e_i)) / 2 inside, the true one-sided difference at a bound,
        and 0 for a coordinate with one value.
    """
    total, sides = torch.zeros(2, len(here) * dimension, dtype=values.dtype)
    place = moves.start * dimension + moves.coordinate
    total.index_add_(0, place, (values - here[moves.start]) * moves.change)
    sides.index_add_(0, place, torch.ones_like(values))
    return (total / sides.clamp(min=1)).reshape(len(here), dimension)


def bits_after(bits_of: Bits, configurations: Tensor, moves: Moves) -> Tensor:
    """Mean bits after each of the moves, (k,) float64."""
    if hasattr(bits_of, "after"):
        return bits_of.after(configurations, *moves)
    return bits_of(moves.applied(configurations)).double()


class Neighbourhood:
    """The surrogate's predictions after single moves, without one kernel evaluation.

    The kernel is a product over coordinates, so a move of one coordinate multiplies the
    covariance with every scored configuration by a ratio of two factors that only depend on the
    coordinate, its value and the direction. All ratios stand in one table, (d, values, 2, n).

    Args:
        surrogate: the fitted Gaussian process.
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
        """Mean and standard deviation of the loss after each move, then where they start.

        Args:
            configurations: (s, d) integers.
            moves: k moves of them.

        Returns:
            Two (k + s,) float64: after each move by itself, and last at the configurations.
        """
        covariances = self.covariances(configurations)
        value = configurations[moves.start, moves.coordinate]
        row = (moves.coordinate * self._values + value) * 2 + (moves.change > 0)
        moved = self._ratios.index_select(0, row)
        moved *= covariances.index_select(0, moves.start)
        return self._surrogate.posterior(torch.cat([moved, covariances]))
