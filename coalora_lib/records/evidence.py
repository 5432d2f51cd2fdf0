"""The results of the comparison, from its records: accuracies, leads with intervals, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import mean

import numpy as np

from coalora_lib.records.interval import Interval, paired_bootstrap, percentile_interval, resampled
from coalora_lib.records.schema import Record, Result, Twins

#: The bits of the hypervolume's reference point: more than any budget of a profile has (6).
MOST_BITS = 6.5
#: The fewest bits that a configuration can have, for the hypervolume's unit.
FEWEST_BITS = 2.0

Budgets = Sequence[float] | None


class Evidence:
    """The records of the comparison, by method, rank and seed.

    In all methods, ``method`` is a label, and ``budgets`` are those of the allocated configurations
    to look at, in order; None for the arbitrary ones, of which every seed has its own, and for a
    method that knows no configurations.

    Args:
        labels: slug of each method to its label, in the order of the tables.
        classes: of the data; guessing is wrong in 1 - 1 / classes of the examples, which is the
            error of the hypervolume's reference point.

    Raises:
        ValueError: a record's method has no label; or later, a result that is asked for is missing.
    """

    def __init__(
        self, records: Sequence[Record], labels: Mapping[str, str], classes: int = 2
    ) -> None:
        self._labels, self._guess = list(labels.values()), 1 - 1 / classes
        self._runs: dict[tuple[str, int | None], dict[int, list[Record]]] = {}
        for record in records:
            job = record.job
            if job.method not in labels:
                raise ValueError(f"{record.file_name}: method {job.method!r} has no label")
            by_seed = self._runs.setdefault((labels[job.method], job.rank), {})
            by_seed.setdefault(job.seed, []).append(record)
        self.ranks = sorted({rank for _, rank in self._runs if rank is not None})

    def methods(self, rank: int) -> list[str]:
        """The methods that there are records of, in the order of the labels."""
        return [name for name in self._labels if self._key(name, rank) in self._runs]

    def seeds(self, method: str, rank: int) -> list[int]:
        """The seeds of a method's records."""
        return sorted(self._runs[self._key(method, rank)])

    def correctness(
        self,
        method: str,
        rank: int | Sequence[int],
        budgets: Budgets,
        seeds: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(seeds, examples): how often each example is right, over configurations.

        Of several ranks it is the mean; ``seeds`` are all by default.
        """
        if not isinstance(rank, int):
            ranks = [self.correctness(method, each, budgets, seeds) for each in rank]
            return np.mean(ranks, axis=0)
        seeds = self.seeds(method, rank) if seeds is None else seeds
        return np.stack([_right(self._chosen(method, rank, seed, budgets)) for seed in seeds])

    def unseen(self, method: str, rank: int) -> Interval:
        """Lead in points of unseen configurations over their seen twins, paired by seeds and
        examples."""
        by_seed = self._twins(method, rank)
        unseen = [_right([pair.unseen for pair in pairs]) for pairs in by_seed]
        seen = [_right([pair.seen for pair in pairs]) for pairs in by_seed]
        return 100 * paired_bootstrap(np.stack(unseen), np.stack(seen))

    def twins(self, method: str, rank: int) -> np.ndarray:
        """(n, 2, 2) of all seeds: seen and unseen; bits, and accuracy in percent."""
        pairs = [pair for pairs in self._twins(method, rank) for pair in pairs]
        return np.array([_points([pair.seen, pair.unseen]) for pair in pairs])

    def accuracy(self, method: str, rank: int, budgets: Budgets) -> tuple[float, float]:
        """Mean over seeds and standard deviation between them, in percent."""
        by_seed = 100 * self.correctness(method, rank, budgets).mean(1)
        return float(by_seed.mean()), float(by_seed.std(ddof=1)) if len(by_seed) > 1 else np.nan

    def points(self, method: str, rank: int, budgets: Budgets) -> np.ndarray:
        """(seeds, n, 2): bits, and accuracy in percent, of n configurations."""
        seeds = self.seeds(method, rank)
        return np.stack([_points(self._chosen(method, rank, seed, budgets)) for seed in seeds])

    def lead(
        self, first: str, second: str, rank: int | Sequence[int], budgets: Budgets
    ) -> Interval:
        """By how many points the first method is ahead.

        Paired over the seeds that both have, and over examples. Of several ranks it is the lead of
        their means: a seed's runs of all ranks are drawn together.
        """
        seeds = self._common_seeds((first, second), [rank] if isinstance(rank, int) else rank)
        pair = [self.correctness(name, rank, budgets, seeds) for name in (first, second)]
        return 100 * paired_bootstrap(pair[0], pair[1])

    def hypervolume(self, method: str, rank: int, budgets: Sequence[float]) -> float:
        """Share of the plane of error and bits that a method dominates, mean over seeds.

        From no error at :data:`FEWEST_BITS` to the error of guessing at :data:`MOST_BITS`.
        """
        seeds = self.seeds(method, rank)
        return float(self._volumes(method, rank, budgets, seeds).mean())

    def hypervolume_lead(
        self, first: str, second: str, rank: int, budgets: Sequence[float]
    ) -> Interval:
        """By how much the first method's :meth:`hypervolume` is larger.

        Paired as :meth:`lead`; every draw of examples has its own fronts. A front keeps the
        luckiest points, so noise raises a hypervolume, and most that of a method whose points come
        from runs of their own.
        """
        seeds = self._common_seeds((first, second), [rank])
        examples = self.correctness(first, rank, budgets[:1], seeds).shape[1]
        by_seed, by_example = resampled(len(seeds), examples)
        found, drawn = (
            self._volumes(first, rank, budgets, seeds, weights)
            - self._volumes(second, rank, budgets, seeds, weights)
            for weights in (None, by_example)
        )
        return percentile_interval(found, (by_seed * drawn).sum(1))

    def cost(self, method: str, rank: int) -> tuple[int, float, int]:
        """To serve all budgets once: runs, seconds of all but the evaluation, numbers stored beside
        the pre-trained weights; means over seeds."""
        by_seed = self._runs[self._key(method, rank)].values()
        seconds = [
            sum(s for r in records for phase, s in r.phases.items() if phase != "evaluation")
            for records in by_seed
        ]
        stored = [sum(r.stored or 0 for r in records) for records in by_seed]
        return max(map(len, by_seed)), mean(seconds), round(mean(stored))

    def _common_seeds(self, methods: Sequence[str], ranks: Sequence[int]) -> list[int]:
        return sorted(set.intersection(*(set(self.seeds(m, r)) for m in methods for r in ranks)))

    def _key(self, method: str, rank: int) -> tuple[str, int | None]:
        """A method without factors is the same at every rank."""
        return (method, None) if (method, None) in self._runs else (method, rank)

    def _twins(self, method: str, rank: int) -> list[list[Twins]]:
        """Of each seed."""
        found = []
        for seed, records in sorted(self._runs[self._key(method, rank)].items()):
            found.append([pair for record in records for pair in record.twins])
            if not found[-1]:
                raise ValueError(f"{method}, rank {rank}, seed {seed}: no seen and unseen twins")
        return found

    def _chosen(self, method: str, rank: int, seed: int, budgets: Budgets) -> list[Result]:
        records = self._runs[self._key(method, rank)].get(seed, [])
        results = [result for record in records for result in record.results]
        if budgets is None:
            return [result for result in results if result.budget is None]
        found = {result.budget: result for result in results}
        missing = [budget for budget in budgets if budget not in found]
        if missing:
            raise ValueError(
                f"{method}, rank {rank}, seed {seed}: no result at {min(missing):g} bits"
            )
        return [found[budget] for budget in budgets]

    def _volumes(
        self,
        method: str,
        rank: int,
        budgets: Budgets,
        seeds: Sequence[int],
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """(draws, seeds) dominated shares; weights (draws, examples), all equal by default."""
        volumes = []
        for seed in seeds:
            chosen = self._chosen(method, rank, seed, budgets)
            right = np.stack([each.correctness for each in chosen], axis=1)
            errors = 1 - (right.mean(0)[None] if weights is None else weights @ right)
            bits = np.array([each.bits for each in chosen])
            volumes.append(dominated_share(errors, bits, self._guess))
        return np.stack(volumes, axis=1)


def _right(results: Sequence[Result]) -> np.ndarray:
    """(examples,): how often each is right."""
    return np.mean([result.correctness for result in results], axis=0)


def _points(results: Sequence[Result]) -> np.ndarray:
    """(n, 2): bits, and accuracy in percent, NaN where there is none."""
    found = [[result.bits, result.accuracy] for result in results]
    return np.array(found, dtype=float) * [1, 100]


def dominated_share(errors: np.ndarray, bits: np.ndarray, guess: float) -> np.ndarray:
    """The hypervolume of many fronts at once, as a share of the plane up to the reference point.

    From (fronts, points) errors and (points,) bits of every front to (fronts,); ``guess`` is the
    reference point's error, its bits are :data:`MOST_BITS`.
    """
    order = bits.argsort()
    lowest = np.minimum.accumulate(np.minimum(errors[:, order], guess), axis=1)
    steps = -np.diff(lowest, axis=1, prepend=guess)
    widths = np.maximum(MOST_BITS - bits[order], 0)
    return steps @ widths / (guess * (MOST_BITS - FEWEST_BITS))


def wall_seconds(records: Sequence[Record]) -> float:
    """How long at least one of these runs was under way, whatever else ran beside it."""
    begun = [datetime.fromisoformat(record.created).timestamp() for record in records]
    spans = sorted((at, at + sum(r.phases.values())) for at, r in zip(begun, records, strict=True))
    total, until = 0.0, -math.inf
    for begin, end in spans:
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
