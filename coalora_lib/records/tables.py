"""Records as one tidy table of results, and the book's tables of one mean per method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
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
    run = {
        "record": position,
        "protocol": record.protocol,
        "dataset": record.dataset,
        "profile": record.profile,
        "method": record.job.method,
        "rank": record.job.rank,
        "seed": record.job.seed,
        "space": record.job.space,
    }
    results = [(_kind(result), result) for result in record.results]
    for pair in record.twins:
        results += [("seen", pair.seen), ("unseen", pair.unseen)]
    counts: dict[str, int] = {}
    for kind, result in results:
        counts[kind] = counts.get(kind, -1) + 1
        yield run | {"kind": kind, "number": counts[kind]} | dict(result)


def _kind(result: Result) -> str:
    if result.budget is not None:
        return "allocated"
    return "unquantized" if result.bits == UNQUANTIZED else "arbitrary"


def accuracy_table(
    records: Sequence[Record], labels: Mapping[str, str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of a table: a row per method, a column per budget and for what has none.

    Args:
        records: of one rank.
        labels: slug of each method to its name in the table, in the table's order.

    Returns:
        Headings, and rows of cells: accuracy in percent, mean over seeds, the standard deviation
        between them in brackets; "-" where there is no result. A seed's arbitrary configurations
        are averaged first.
    """
    table = frame(records)
    budgets = sorted(table["budget"].dropna().unique())
    kinds = [kind for kind in ("arbitrary", "unquantized") if kind in set(table["kind"])]
    columns = [*(f"{budget:g} bits" for budget in budgets), *kinds]
    bits = table["budget"].map(lambda budget: f"{budget:g} bits")
    table["column"] = bits.where(table["kind"] == "allocated", table["kind"])
    means = 100 * table.groupby(["method", "column", "seed"])["accuracy"].agg(mean)
    found = means.groupby(["method", "column"]).agg(list)
    rows = [
        (label, *(_with_spread(found.get((slug, column), [])) for column in columns))
        for slug, label in labels.items()
        if slug in set(table["method"])
    ]
    return ("run", *columns), rows


def _with_spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{mean(values):.1f} ({stdev(values):.1f})"


def common_accuracies(
    records: Sequence[Record], labels: Mapping[str, str]
) -> dict[str, dict[int, tuple[float, float]]]:
    """Accuracies on the configurations that all methods of a seed were evaluated on, in percent.

    Args:
        records: one per method and seed.
        labels: slug of each method to the name it is returned under.

    Returns:
        Label to seed to mean accuracy on the allocated and on the arbitrary configurations.
    """
    table = frame(records)
    # A configuration is known by its budget, or without one by its bits.
    runs = table.groupby("seed")["record"].transform("nunique")
    shared = table.groupby(["seed", "budget", "bits"], dropna=False)["record"].transform("nunique")
    kept = table[shared == runs].sort_values("record", kind="stable")
    means = 100 * kept.groupby(["method", "seed", "kind"])["accuracy"].agg(mean)
    return {
        labels[slug]: {
            seed: (each[slug, seed, "allocated"], each[slug, seed, "arbitrary"])
            for seed, each in of_method.groupby("seed")
        }
        for slug, of_method in means.groupby("method")
    }
