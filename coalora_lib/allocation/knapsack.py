"""The multiple-choice knapsack: one choice for each layer, least cost, weight within a limit.

The Lagrangian relaxation at its best multiplier lambda bounds the optimum from below, and says
for every choice by how much the bound rises if it is taken, its reduced cost

    r_ic = e_ic + lambda w_ic - min_c' (e_ic' + lambda w_ic') >= 0.

A solution of cost at most (bound + slack) uses choices with sum of r at most that slack. So guess
a small slack, enumerate such solutions layer by layer, keep of partial ones only those that no
other beats in cost and weight, and double the slack until one is found: it is optimal. With many
layers the optimum lies very close to the bound, and few choices survive.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Partial solutions kept at once before giving up; real error tables need some thousands.
MOST_STATES = 2_000_000
#: The first slack, relative to how far the best solution of the relaxation's own choices is from
#: the bound.
FIRST_SLACK = 1 / 64
#: What float64 may lose in a sum of costs, relative to it.
ROUNDING = 1e-12


def undominated(costs: NDArray[np.float64], weights: NDArray) -> NDArray[np.intp]:
    """Positions that none beats in both, weights strictly rising and costs strictly falling."""
    order = np.lexsort((costs, weights))
    best = np.minimum.accumulate(costs[order])
    kept = np.ones(len(order), bool)
    kept[1:] = best[1:] < best[:-1]
    return order[kept]


def solve(
    costs: Sequence[NDArray[np.float64]], weights: Sequence[NDArray[np.int64]], limit: int
) -> list[int] | None:
    """The position of each layer's optimal choice; None if :data:`MOST_STATES` do not suffice.

    Costs of a layer's choices strictly fall and weights rise; the limit on the sum of weights is at
    least the sum of the smallest.
    """
    if sum(int(w[-1]) for w in weights) <= limit:
        return [len(w) - 1 for w in weights]
    multiplier = _multiplier(costs, weights, limit)
    if multiplier == 0.0:
        return [len(w) - 1 for w in weights]
    lagrangian = [cost + multiplier * weight for cost, weight in zip(costs, weights, strict=True)]
    reduced = [values - values.min() for values in lagrangian]
    rounding = ROUNDING * sum(float(np.abs(values).max()) for values in lagrangian)
    # The lightest of each layer's choices without a reduced cost fit the limit together; the room
    # that they leave is what the bound counts too low.
    lightest = sum(
        int(weight[values <= rounding].min())
        for weight, values in zip(weights, reduced, strict=True)
    )
    worst = multiplier * (limit - lightest) + rounding
    slack = worst * FIRST_SLACK + rounding
    while True:
        found = _within(costs, weights, reduced, limit, multiplier, min(slack, worst))
        if found is None or found:
            return found
        slack *= 2


def _multiplier(
    costs: Sequence[NDArray[np.float64]], weights: Sequence[NDArray[np.int64]], limit: int
) -> float:
    """The best lambda: the slope at which steps down the layers' convex hulls fill the limit."""
    steps = []
    for cost, weight in zip(costs, weights, strict=True):
        hull = _lower_hull(weight.astype(float), cost)
        steps.append((np.diff(cost[hull]) / np.diff(weight[hull]), np.diff(weight[hull])))
    slopes = np.concatenate([slope for slope, _ in steps])
    widths = np.concatenate([width for _, width in steps])
    order = np.argsort(slopes, kind="stable")
    filled = sum(int(weight[0]) for weight in weights) + np.cumsum(widths[order])
    return float(-slopes[order][np.searchsorted(filled, limit, side="right")])


def _lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[int]:
    """Positions of the points on the lower convex hull, x rising."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) >= 2:
            a, b = hull[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return hull


def _within(
    costs: Sequence[NDArray[np.float64]],
    weights: Sequence[NDArray[np.int64]],
    reduced: Sequence[NDArray[np.float64]],
    limit: int,
    multiplier: float,
    slack: float,
) -> list[int] | None:
    """The best solution whose cost is at most bound + slack: empty if none, None if too many."""
    kept = [np.flatnonzero(values <= slack) for values in reduced]
    # Layers with most to choose from come last, when the weight left over already rules most out.
    order = np.argsort([len(choices) for choices in kept], kind="stable")
    rest = [(int(weights[i][c].min()), int(weights[i][c].max())) for i, c in enumerate(kept)]
    least_left = sum(low for low, _ in rest)
    most_left = sum(high for _, high in rest)
    weight, cost, spent = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    trail = []
    for layer in order:
        choices = kept[layer]
        least_left -= rest[layer][0]
        most_left -= rest[layer][1]
        weight = (weight[:, None] + weights[layer][choices]).ravel()
        spent = (spent[:, None] + reduced[layer][choices]).ravel()
        cost = (cost[:, None] + costs[layer][choices]).ravel()
        # In cost: sum of r, plus lambda for each unit of the limit that stays unused.
        unused = np.maximum(limit - weight - most_left, 0)
        alive = (spent + multiplier * unused <= slack) & (weight + least_left <= limit)
        alive = np.flatnonzero(alive)
        alive = alive[undominated(cost[alive], weight[alive])]
        if len(alive) == 0:
            return []
        if len(alive) > MOST_STATES:
            return None
        trail.append((layer, alive // len(choices), choices[alive % len(choices)]))
        weight, cost, spent = weight[alive], cost[alive], spent[alive]
    state = int(cost.argmin())
    picked = [0] * len(costs)
    for layer, parents, chosen in reversed(trail):
        picked[layer] = int(chosen[state])
        state = int(parents[state])
    return picked
