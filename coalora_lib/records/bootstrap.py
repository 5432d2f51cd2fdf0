"""The paired bootstrap over seeds and examples."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from coalora_lib.records.interval import Interval

#: Draws of the bootstrap. The ends of a 95 % interval then have a standard error of about 0.03
#: standard deviations of what is drawn: sqrt(0.025 * 0.975 / draws) / density at the end.
RESAMPLES = 10_000


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """How much better the first of two methods is, over seeds and examples.

    Seeds and examples are drawn anew, with replacement, and independently of each other; both
    methods keep the same draws (Efron and Tibshirani 1993, percentile interval). An example that
    both get right, or both wrong, under every seed adds nothing to the spread.

    Args:
        first, second: (seeds, examples) correctness, averaged over configurations; the same seeds
            and examples in both.
        confidence: of the interval.
        seed: of the draws.

    Raises:
        ValueError: shapes differ.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"first is {first.shape} and second {second.shape}; both must be (seeds, examples)"
        )
    difference = np.asarray(first, dtype=float) - second
    by_seed, by_example = resampled(*difference.shape, seed)
    means = np.einsum("rs,se,re->r", by_seed, difference, by_example, optimize=True)
    return Interval(float(difference.mean()), *percentiles(means, confidence))


@lru_cache(maxsize=4)  # a second to draw; a chapter asks for the same ones a hundred times
def resampled(seeds: int, examples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The bootstrap's draws with replacement, as weights: a mean over a draw is a product with it.

    Returns:
        (draws, seeds) and (draws, examples), not to be written to, each row with sum 1; drawn
        independently.
    """
    generator = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        weights = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
        weights.flags.writeable = False
        return weights

    return draw(seeds), draw(examples)


def percentiles(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """What holds this share of the draws, with as many below as above: (low, high)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
