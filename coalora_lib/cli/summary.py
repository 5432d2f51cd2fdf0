"""Records as a table of plain text."""

from __future__ import annotations

from collections.abc import Sequence

from coalora_lib.experiments.methods import METHODS
from coalora_lib.records import Record, frame


def summary(records: Sequence[Record]) -> str:
    """Accuracies of records of one seed: a row per method, a column per budget."""
    first, results = records[0], frame(records)
    allocated = results[results["kind"] == "allocated"]
    budgets = sorted(allocated["budget"].unique())
    found = allocated.groupby(["method", "budget"])["accuracy"].last().to_dict()
    data = f"{first.dataset} (synthetic)" if first.synthetic else first.dataset
    lines = [
        f"Accuracy in percent on {data}, {results['examples'].max()} examples, profile "
        f"{first.profile}, seed {first.job.seed}",
        "bits per parameter".ljust(20) + "".join(f"{budget:>8g}" for budget in budgets),
    ]
    there = set(results["method"])
    for slug, method in METHODS.items():
        if slug in there:
            shares = (found.get((slug, budget)) for budget in budgets)
            cells = ("-" if share is None else f"{100 * share:.1f}" for share in shares)
            lines.append(method.label.ljust(20) + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join(lines)
