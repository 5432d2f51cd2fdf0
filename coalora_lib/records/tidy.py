"""All results of many records as one tidy frame, and tables of means made from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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

        budget, bits, accuracy, loss, examples, seconds, steps, passes, correct, neighbours,
        spearman, agreement: as in :class:`~coalora_lib.records.schema.Result`; NaN where it was not
        measured.
    """
    table = pd.DataFrame(row for i, record in enumerate(records) for row in _rows(i, record))
    measured = ("budget", "accuracy", "neighbours", "spearman", "agreement")
    numbers = dict.fromkeys(measured, float)
    return table.astype({"rank": "Int64", **numbers}) if len(table) else table


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


def accuracy_table(
    records: Sequence[Record], labels: Mapping[str, str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows: a row per method, a column per budget and for what has none.

    Cells are the accuracy in percent, mean over seeds, the standard deviation between them in
    brackets; "-" where there is no result. A seed's arbitrary configurations are averaged first.

    Args:
        records: of one rank.
        labels: slug of each method to its name in the table, in the table's order.
    """
    table = frame(records)
    table = table[~table["kind"].isin(["seen", "unseen"])]
    column = table["budget"].map("{:g} bits".format).where(table["budget"].notna(), table["kind"])
    order = table["budget"].fillna(math.inf).groupby(column).first()
    columns = sorted(order.index, key=lambda name: (order[name], name))
    by_seed = 100 * table.groupby(["method", column, "seed"])["accuracy"].mean()
    cells = by_seed.groupby(level=[0, 1]).apply(_cell)
    rows = [
        (label, *(cells.get((slug, name), "-") for name in columns))
        for slug, label in labels.items()
        if slug in cells.index.levels[0]
    ]
    return ("run", *columns), rows


def _cell(by_seed: pd.Series) -> str:
    spread = f" ({by_seed.std():.1f})" if len(by_seed) > 1 else ""
    return f"{by_seed.mean():.1f}{spread}"


def common_accuracies(
    records: Sequence[Record], labels: Mapping[str, str]
) -> dict[str, dict[int, tuple[float, float]]]:
    """Accuracies on the configurations that all methods of a seed were evaluated on, in percent.

    From one record per method and seed: label to seed to the mean on the allocated and on the
    arbitrary configurations.
    """
    table = frame(records)
    # A configuration is known by its budget, or without one by its bits.
    everywhere = table.groupby(["seed", "budget", "bits"], dropna=False)["method"].transform("size")
    runs = table.groupby("seed")["method"].transform("nunique")
    kept = table[(everywhere == runs) & table["kind"].isin(["allocated", "arbitrary"])]
    means = 100 * kept.groupby(["method", "seed", "kind"])["accuracy"].mean().unstack()
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for (slug, seed), row in means.sort_index(level="seed").iterrows():
        found.setdefault(labels[slug], {})[seed] = (row["allocated"], row["arbitrary"])
    return found
