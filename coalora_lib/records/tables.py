"""The tables of records that are one mean per method: options of the adapter, ways to search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from coalora_lib.records.schema import Record
from coalora_lib.records.tidy import frame


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
    means = table.groupby(["method", "column", "seed"])["accuracy"].agg(mean)
    found: dict[tuple[str, str], list[float]] = {}
    for (slug, column, _), share in means.items():
        found.setdefault((slug, column), []).append(100 * share)
    there = set(table["method"])
    rows = [
        (label, *(_with_spread(found.get((slug, column), ())) for column in columns))
        for slug, label in labels.items()
        if slug in there
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
