"""Pareto fronts of (loss, cost), both minimised: the front, its hypervolume, the filter."""

import math

import torch
from torch import Tensor

from coalora_lib.search.arrays import as_numbers


def pareto_front(points: Tensor) -> Tensor:
    """The rows no other row beats in both columns, in ascending cost; of equal rows the first.

    (n, 2) of [loss, cost] to (kept,) int64; ValueError for another shape or a NaN.
    """
    points = _checked(points).double()
    # A stable sort by cost after one by loss is a sort by (cost, loss).
    order = points[:, 0].argsort(stable=True)
    order = order[points[order, 1].argsort(stable=True)]
    losses = points[order, 0]
    best_before = torch.cat([losses.new_tensor([torch.inf]), losses.cummin(0).values[:-1]])
    return order[losses < best_before] if len(order) else order


def reference_point(points: Tensor, margin: float = 0.1) -> tuple[float, float]:
    """The worst loss and cost of (n, 2) points plus a margin: behind every point in both.

    The margin is a part of each column's range (of its magnitude where the range is zero).
    """
    points = _checked(points)
    worst, best = points.amax(0), points.amin(0)
    spread = torch.where(worst > best, worst - best, worst.abs().clamp(min=1.0))
    loss, cost = (worst + margin * spread).tolist()
    return loss, cost


def hypervolume(points: Tensor, reference: tuple[float, float]) -> float:
    """The area that (n, 2) of [loss, cost] dominate, up to the reference (loss, cost)."""
    losses, edges = staircase(points, reference)
    return float(((reference[0] - losses) * edges.diff())[1:].sum())


def staircase(points: Tensor, reference: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """L(t), the least loss of a point that costs at most t, as steps; capped at the reference.

    (m + 1,) float64 heights of the steps, the first the reference loss; and (m + 2,) where they
    begin and end: -inf, the front's m costs in ascending order, the reference cost.
    """
    points = _checked(points)
    if any(math.isnan(value) for value in reference):
        raise ValueError(f"reference={reference} holds a NaN")
    inside = points[(points[:, 0] < reference[0]) & (points[:, 1] < reference[1])].double()
    front = inside[pareto_front(inside)]
    losses = torch.cat([front.new_tensor([reference[0]]), front[:, 0]])
    infinity, last = front.new_tensor([-torch.inf]), front.new_tensor([reference[1]])
    return losses, torch.cat([infinity, front[:, 1], last])


def segment_pareto_filter(points: Tensor, segments: int = 40) -> Tensor:
    """The union of the Pareto fronts inside equal segments of the range of costs (paper, 4.2).

    Keeping a front in every segment keeps the set diverse: the overall front alone would drop
    whole ranges of costs. (n, 2) of [loss, cost] and U segments to (kept,) int64 rows, ascending.

    Raises:
        ValueError: no points, segments is not a positive integer, or a value is not finite.
    """
    points = _checked(points)
    if not float(segments).is_integer() or segments < 1 or len(points) == 0:
        raise ValueError(f"{len(points)} points cannot be cut into {segments} segments")
    if not points.isfinite().all():
        row = int((~points.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"point {row} is {points[row].tolist()}: it has no place in a segment")
    costs = points[:, 1].double()
    low, high = costs.min(), costs.max()
    width = (high - low).clamp(min=torch.finfo(costs.dtype).tiny)
    segment = ((costs - low) / width * segments).long().clamp(max=segments - 1)
    members = [(segment == value).nonzero().flatten() for value in segment.unique()]
    return torch.cat([rows[pareto_front(points[rows])] for rows in members]).sort().values


def _checked(points: Tensor) -> Tensor:
    points = as_numbers("points", points)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be (n, 2) of [loss, cost], got {tuple(points.shape)}")
    if points.isnan().any():
        row = int(points.isnan().any(1).nonzero()[0])
        raise ValueError(f"point {row} is {points[row].tolist()}: a NaN cannot be ranked")
    return points
