"""The book's tables of records that are one mean per method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from coalora_lib.records.schema import UNQUANTIZED, Record, Result


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
    budgets: dict[str, float] = {}
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for record in records:
        for result in record.results:
            column = _column(result)
            budgets[column] = result.budget or math.inf
            by_seed = found.setdefault((record.job.method, column), {})
            by_seed.setdefault(record.job.seed, []).append(result.accuracy)
    columns = sorted(budgets, key=lambda column: (budgets[column], column))
    methods = {method for method, _ in found}
    rows = [
        (label, *(_cell(found.get((slug, column), {})) for column in columns))
        for slug, label in labels.items()
        if slug in methods
    ]
    return ("run", *columns), rows


def _column(result: Result) -> str:
    if result.budget is not None:
        return f"{result.budget:g} bits"
    return "unquantized" if result.bits == UNQUANTIZED else "arbitrary"


def _cell(by_seed: Mapping[int, Sequence[float]]) -> str:
    values = [100 * mean(accuracies) for accuracies in by_seed.values()]
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{mean(values):.1f} ({stdev(values):.1f})"


def common_accuracies(
    records: Sequence[Record], labels: Mapping[str, str]
) -> dict[str, dict[int, tuple[float, float]]]:
    """Accuracies on the configurations that all methods of a seed were evaluated on, in percent.

    From one record per method and seed: label to seed to the mean on the allocated and on the
    arbitrary configurations.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for seed in sorted({record.job.seed for record in records}):
        runs = [record for record in records if record.job.seed == seed]
        # A configuration is known by its budget, or without one by its bits.
        known = [{(each.budget, each.bits) for each in run.results} for run in runs]
        shared = set.intersection(*known)
        for run in runs:
            kept = [each for each in run.results if (each.budget, each.bits) in shared]
            allocated = [each.accuracy for each in kept if each.budget is not None]
            arbitrary = [each.accuracy for each in kept if each.budget is None]
            by_seed = found.setdefault(labels[run.job.method], {})
            by_seed[seed] = 100 * mean(allocated), 100 * mean(arbitrary)
    return found
