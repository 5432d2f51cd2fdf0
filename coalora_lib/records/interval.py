"""A mean, or a difference of means, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

import scipy.stats


@dataclass(frozen=True)
class Interval:
    """A number and its confidence interval, of 95 % unless said otherwise.

    Formatted with signs: ``f"{lead}"`` and ``f"{lead:.3f}"`` give "+0.13 (-1.00 to +2.50)", with
    spaces that do not break inside the brackets.

    Attributes:
        mean: the number; low, high: the interval's ends.
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies above zero, or below."""
        return self.low > 0 or self.high < 0

    def __rmul__(self, factor: float) -> Interval:
        """In another unit: 100 * interval is in percent. The factor is positive."""
        return Interval(factor * self.mean, factor * self.low, factor * self.high)

    def __str__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        middle, low, high = (
            f"{value:+{spec or '.2f'}}" for value in (self.mean, self.low, self.high)
        )
        return f"{middle} ({low}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high})"


def student_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a few independent values, with Student's interval.

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, got {len(values)}")
    half = scipy.stats.t.ppf(0.5 + confidence / 2, len(values) - 1)
    half *= stdev(values) / sqrt(len(values))
    return Interval(mean(values), mean(values) - half, mean(values) + half)
