"""Records as a table of plain text."""

from __future__ import annotations

from collections.abc import Sequence

from coalora_lib.experiments.methods import METHODS
from coalora_lib.records import Record, accuracy_table


def summary(records: Sequence[Record]) -> str:
    """Accuracies of records of one seed: a row per method, a column per budget."""
    first, labels = records[0], {slug: method.label for slug, method in METHODS.items()}
    columns, rows = accuracy_table(records, labels)
    data = f"{first.dataset} (synthetic)" if first.synthetic else first.dataset
    lines = [
        f"Accuracy in percent on {data}, {first.results[0].examples} examples, profile "
        f"{first.profile}, seed {first.job.seed}"
    ]
    lines += [
        f"{name:<34}" + "".join(f"{c:>10}" for c in cells) for name, *cells in (columns, *rows)
    ]
    return "\n".join(lines)
