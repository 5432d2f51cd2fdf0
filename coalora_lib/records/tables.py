"""The tables of records that are one mean per method: options of the adapter, ways to search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from coalora_lib.records.schema import Record
from coalora_lib.records.tidy import frame


def accuracy_table(
    records: Sequence[Record], labels: Mapping[str, str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of a table: a row per method, a column per budget, and the arbitrary ones.

    Args:
        records: of one rank.
        labels: slug of each method to its name in the table, in the table's order.

    Returns:
        Headings, and rows of cells: accuracy in percent, mean over seeds, the standard deviation
        between them in brackets. Arbitrary configurations are averaged within a seed first.
    """
    table = frame(records)
    budgets = sorted(table["budget"].dropna().unique())
    columns = [*(f"{budget:g} bits" for budget in budgets), "arbitrary"]
    table["column"] = table["budget"].map(lambda budget: f"{budget:g} bits")
    table.loc[table["kind"] == "arbitrary", "column"] = "arbitrary"
    means = 100 * table.groupby(["method", "column", "seed"])["accuracy"].agg(mean)
    there = set(table["method"])
    rows = [
        (label, *(_with_spread(means[slug, column].tolist()) for column in columns))
        for slug, label in labels.items()
        if slug in there
    ]
    return ("run", *columns), rows


def _with_spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ({stdev(values):.1f})" if len(values) > 1 else f"{values[0]:.1f}"


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
