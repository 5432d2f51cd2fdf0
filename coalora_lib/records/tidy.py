"""All results of many records as one tidy table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from coalora_lib.records.schema import UNQUANTIZED, Record, Result


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per result: per run and configuration that it was evaluated on.

    Columns:
        record: position in ``records``; protocol, dataset, profile, method, rank, seed, space: of
        the run. A method without LoRA factors has no rank (<NA>).

        kind: "allocated" (has a budget), "arbitrary" (has none), "unquantized", or of a pair of
        twins "seen" or "unseen"; number: position among the record's results of that kind, so that
        twins have the same.

        budget, bits, accuracy, loss, examples, seconds, steps, passes, correct: as in
        :class:`~coalora_lib.records.schema.Result`.
    """
    table = pd.DataFrame(row for i, record in enumerate(records) for row in _rows(i, record))
    return table.astype({"rank": "Int64"}) if len(table) else table


def _rows(position: int, record: Record) -> Iterator[dict[str, Any]]:
    job = record.job
    run = {
        "record": position,
        "protocol": record.protocol,
        "dataset": record.dataset,
        "profile": record.profile,
        "method": job.method,
        "rank": job.rank,
        "seed": job.seed,
        "space": job.space,
    }
    counts: dict[str, int] = {}

    def row(kind: str, result: Result) -> dict[str, Any]:
        counts[kind] = counts.get(kind, -1) + 1
        return run | {"kind": kind, "number": counts[kind]} | dict(result)

    for result in record.results:
        unallocated = "unquantized" if result.bits == UNQUANTIZED else "arbitrary"
        yield row(unallocated if result.budget is None else "allocated", result)
    for pair in record.twins:
        yield row("seen", pair.seen)
        yield row("unseen", pair.unseen)
