"""What the records of the comparison say: accuracies, leads with intervals, cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from statistics import mean

import numpy as np

from coalora_lib.experiments.methods import EVERY_METHOD
from coalora_lib.experiments.records import Record, Result, Twins
from coalora_lib.experiments.statistics import paired_bootstrap, percentiles, resampled

#: The hypervolume's reference point: the error of guessing one of two classes, and more bits than
#: any budget has.
REFERENCE = (0.5, 6.5)
#: The fewest bits that a configuration can have, for the hypervolume's unit.
FEWEST_BITS = 2.0


class Evidence:
    """The records of the comparison, by method, rank and seed.

    Args:
        records: from :func:`~coalora_lib.experiments.records.read_records`.

    Attributes:
        ranks: that the records have.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records: dict[tuple[str, int], dict[int, list[Record]]] = {}
        for record in records:
            method = record.results[0].method
            rank = record.rank if EVERY_METHOD[method].has_rank else 0
            by_seed = self._records.setdefault((method, rank), {})
            by_seed.setdefault(record.seed, []).append(record)
        self.ranks = sorted({rank for _, rank in self._records} - {0})

    def methods(self, rank: int) -> list[str]:
        """The methods that there are records of, in the order of ``EVERY_METHOD``."""
        return [name for name in EVERY_METHOD if self._key(name, rank) in self._records]

    def seeds(self, method: str, rank: int) -> list[int]:
        """The seeds of a method's records."""
        return sorted(self._records[self._key(method, rank)])

    def correctness(
        self,
        method: str,
        rank: int | Sequence[int],
        budgets: Sequence[float] | None,
        seeds: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(seeds, examples): how often each example is right, over configurations.

        Args:
            method, rank: whose; of several ranks, the mean.
            budgets: over the allocated configurations of these; None for the arbitrary ones, and
                for a method that knows no configurations.
            seeds: all by default.

        Raises:
            ValueError: a seed has no result for one of the budgets.
        """
        if not isinstance(rank, int):
            ranks = [self.correctness(method, each, budgets, seeds) for each in rank]
            return np.mean(ranks, axis=0)
        rows = []
        for seed in self.seeds(method, rank) if seeds is None else seeds:
            results = self._results(method, rank, seed)
            chosen = [r for r in results if r.budget is None]
            if budgets is not None:
                chosen = [r for r in results if r.budget in budgets]
                missing = set(budgets) - {r.budget for r in chosen}
                if missing:
                    raise ValueError(
                        f"{method}, rank {rank}, seed {seed}: no result at {min(missing):g} bits"
                    )
            rows.append(np.mean([r.correctness for r in chosen], axis=0))
        return np.stack(rows)

    def unseen(self, method: str, rank: int) -> tuple[float, float, float]:
        """By how many points unseen configurations are ahead of their seen twins: mean, and a 95 %
        interval, paired over seeds and examples.

        Raises:
            ValueError: the records have no twins.
        """
        sides = [
            np.stack(
                [
                    np.mean(
                        [getattr(twins, side).correctness for twins in self._twins(*key)], axis=0
                    )
                    for key in ((method, rank, seed) for seed in self.seeds(method, rank))
                ]
            )
            for side in ("unseen", "seen")
        ]
        return tuple(100 * value for value in paired_bootstrap(*sides))

    def twins(self, method: str, rank: int) -> np.ndarray:
        """(n, 2, 2) of all seeds: seen and unseen; bits, and accuracy in percent."""
        return np.array(
            [
                [(r.bits, 100 * r.accuracy) for r in (twins.seen, twins.unseen)]
                for seed in self.seeds(method, rank)
                for twins in self._twins(method, rank, seed)
            ]
        )

    def accuracy(
        self, method: str, rank: int, budgets: Sequence[float] | None
    ) -> tuple[float, float]:
        """Mean over seeds and standard deviation between them, in percent."""
        by_seed = 100 * self.correctness(method, rank, budgets).mean(1)
        return float(by_seed.mean()), float(by_seed.std(ddof=1)) if len(by_seed) > 1 else np.nan

    def points(self, method: str, rank: int, budgets: Sequence[float] | None) -> np.ndarray:
        """(seeds, n, 2): bits, and accuracy in percent, of n configurations.

        Args:
            method, rank: whose.
            budgets: the allocated configurations of these, in order; None for the arbitrary ones,
                of which every seed has its own.
        """
        wanted = [None] if budgets is None else budgets
        by_seed = []
        for seed in self.seeds(method, rank):
            results = self._results(method, rank, seed)
            chosen = [r for budget in wanted for r in results if r.budget == budget]
            by_seed.append([(r.bits, 100 * r.accuracy) for r in chosen])
        return np.array(by_seed)

    def lead(
        self,
        first: str,
        second: str,
        rank: int | Sequence[int],
        budgets: Sequence[float] | None,
    ) -> tuple[float, float, float]:
        """By how many points the first method is ahead: mean, and a 95 % interval.

        Paired over the seeds that both have, and over examples. Of several ranks it is the lead of
        their means: a seed's runs of all ranks are drawn together.
        """
        seeds = self._common_seeds((first, second), [rank] if isinstance(rank, int) else rank)
        pair = (self.correctness(name, rank, budgets, seeds) for name in (first, second))
        return tuple(100 * value for value in paired_bootstrap(*pair))

    def hypervolume(self, method: str, rank: int, budgets: Sequence[float]) -> float:
        """Share of the plane of error and bits that a method dominates, mean over seeds.

        The plane reaches from no error at 2 bits to :data:`REFERENCE`; the points are the
        accuracies at these budgets. 1 would be no error at 2 bits.
        """
        seeds = self.seeds(method, rank)
        return float(self._volumes(method, rank, budgets, seeds).mean())

    def hypervolume_lead(
        self, first: str, second: str, rank: int, budgets: Sequence[float]
    ) -> tuple[float, float, float]:
        """By how much the first method's :meth:`hypervolume` is larger: mean, and a 95 % interval.

        Paired as :meth:`lead` is; every draw of examples has fronts of its own. A front keeps the
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
        return float(found.mean()), *percentiles((by_seed * drawn).sum(1))

    def cost(self, method: str, rank: int) -> tuple[int, float, int]:
        """To serve all budgets once: runs, seconds of all but the evaluation, numbers stored beside
        the pre-trained weights; means over seeds."""
        by_seed = self._records[self._key(method, rank)].values()
        seconds = mean(
            sum(
                spent for r in records for phase, spent in r.phases.items() if phase != "evaluation"
            )
            for records in by_seed
        )
        runs = max(len(records) for records in by_seed)
        return runs, seconds, round(mean(sum(r.stored for r in records) for records in by_seed))

    def _common_seeds(self, methods: Sequence[str], ranks: Sequence[int]) -> list[int]:
        return sorted(set.intersection(*(set(self.seeds(m, r)) for m in methods for r in ranks)))

    def _key(self, method: str, rank: int) -> tuple[str, int]:
        return method, rank if EVERY_METHOD[method].has_rank else 0

    def _twins(self, method: str, rank: int, seed: int) -> list[Twins]:
        records = self._records[self._key(method, rank)][seed]
        found = [twins for record in records for twins in record.twins]
        if not found:
            raise ValueError(f"{method}, rank {rank}, seed {seed}: no seen and unseen twins")
        return found

    def _volumes(
        self,
        method: str,
        rank: int,
        budgets: Sequence[float],
        seeds: Sequence[int],
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """(draws, seeds) dominated shares; weights (draws, examples) of the examples, one draw of
        equal weights by default."""
        volumes = []
        for seed in seeds:
            right = [self.correctness(method, rank, [bits], [seed])[0] for bits in budgets]
            right = np.stack(right, axis=1)  # (examples, budgets)
            errors = 1 - (right.mean(0)[None] if weights is None else weights @ right)
            results = self._results(method, rank, seed)
            bits = [next(r.bits for r in results if r.budget == budget) for budget in budgets]
            volumes.append(dominated_share(errors, np.array(bits)))
        return np.stack(volumes, axis=1)

    def _results(self, method: str, rank: int, seed: int) -> list[Result]:
        records = self._records[self._key(method, rank)][seed]
        return [result for record in records for result in record.results]


def dominated_share(errors: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The hypervolume of many fronts at once, as a share of the plane up to :data:`REFERENCE`.

    Args:
        errors: (fronts, points).
        bits: (points,), those of every front.

    Returns:
        (fronts,).
    """
    order = bits.argsort()
    lowest = np.minimum.accumulate(np.minimum(errors[:, order], REFERENCE[0]), axis=1)
    steps = -np.diff(lowest, axis=1, prepend=REFERENCE[0])
    widths = np.maximum(REFERENCE[1] - bits[order], 0)
    return steps @ widths / (REFERENCE[0] * (REFERENCE[1] - FEWEST_BITS))


def wall_seconds(records: Sequence[Record]) -> float:
    """How long at least one of these runs was under way, whatever else ran beside it."""
    begun = [datetime.fromisoformat(record.created).timestamp() for record in records]
    spans = sorted((at, at + sum(r.phases.values())) for at, r in zip(begun, records, strict=True))
    total, until = 0.0, -math.inf
    for begin, end in spans:
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
