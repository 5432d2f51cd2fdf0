"""Budgets in mean bits per parameter."""

from __future__ import annotations


def spread(low: float, high: float, count: int) -> tuple[float, ...]:
    """``count`` budgets at equal distances, both ends included; one alone is the middle."""
    if count == 1:
        return ((low + high) / 2,)
    return tuple(low + (high - low) * i / (count - 1) for i in range(count))
