"""A mean, or a difference of means, and how sure it is: Student's interval, paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import mean, stdev

import numpy as np
import scipy.stats

#: Of every interval.
CONFIDENCE = 0.95
#: Draws of the bootstrap. The ends of a 95 % interval then have a standard error of about 0.03
#: standard deviations of what is drawn: sqrt(0.025 * 0.975 / draws) / density at the end.
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A number and the ends of its 95 % confidence interval.

    Formatted with signs: ``f"{lead}"`` and ``f"{lead:.3f}"`` give "+0.13 (-1.00 to +2.50)", with
    spaces that do not break inside the brackets.
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
        values = (self.mean, self.low, self.high)
        middle, low, high = (f"{value:+{spec or '.2f'}}" for value in values)
        return f"{middle} ({low}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high})"


def student_interval(values: Sequence[float]) -> Interval:
    """Mean of a few independent values, two or more, with Student's interval."""
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, got {len(values)}")
    half = scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
    half *= stdev(values) / sqrt(len(values))
    return Interval(mean(values), mean(values) - half, mean(values) + half)


def paired_bootstrap(first: np.ndarray, second: np.ndarray) -> Interval:
    """How much better the first of two methods is, over seeds and examples.

    Seeds and examples are drawn with replacement, and independently of each other; both methods
    keep the same draws (Efron and Tibshirani 1993, percentile interval). ``first`` and ``second``
    are (seeds, examples) correctness, averaged over configurations, of the same ones.

    Raises:
        ValueError: shapes differ.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"first is {first.shape} and second {second.shape}; both must be (seeds, examples)"
        )
    difference = np.asarray(first, dtype=float) - second
    by_seed, by_example = resampled(*difference.shape)
    means = np.einsum("rs,se,re->r", by_seed, difference, by_example, optimize=True)
    return percentile_interval(difference, means)


@lru_cache(maxsize=4)  # a second to draw; a chapter asks for the same ones a hundred times
def resampled(seeds: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """The bootstrap's draws with replacement, as weights: a mean over a draw is a product with it.

    (draws, seeds) and (draws, examples), drawn independently, each row with sum 1; read-only.
    """
    generator = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        weights = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
        weights.flags.writeable = False
        return weights

    return draw(seeds), draw(examples)


def percentile_interval(found: np.ndarray, draws: np.ndarray) -> Interval:
    """The mean of the values, with as many of the draws below the interval as above."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(found.mean()), float(low), float(high))
