"""What each option of the adapter does to accuracy: one run an option, on the same ground."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import torch

from coalora_lib.configuration import random_configuration
from coalora_lib.experiments.records import (
    Record,
    new_record,
    read_records,
    result_of,
    write_record,
)
from coalora_lib.experiments.setup import Setup
from coalora_lib.training import evaluate, train

#: Configurations that no training set holds, drawn at random, beside the allocated ones.
ARBITRARY = 8


def options(rank: int) -> dict[str, dict]:
    """The runs by name: what each attaches with, at the same total rank."""
    half = {"rank": rank // 2, "residual_rank": rank - rank // 2}
    return {
        "Shared-LoRA": {"configuration_aware": False},
        "CoA-LoRA": {},
        "learned scale": {"learned_scale": True},
        "output bias": {"output_bias": True},
        "error features": {"error_features": True},
        "SVD start": {"start": "svd"},
        "residual start": {"start": "residual", **half},
        "Shared-LoRA, residual start": {
            "start": "residual",
            "configuration_aware": False,
            **half,
        },
    }


def compare_options(setup: Setup, folder: str | Path, experiment: str = "options") -> Record:
    """Train and evaluate one model an option; the record is written after each of them.

    Args:
        setup: the shared ground.
        folder: for the record.
        experiment: its name.
    """
    record = new_record(experiment, setup)
    training_set = setup.training_set()
    for method, settings in options(setup.run.profile.rank).items():
        started = time.perf_counter()
        model = setup.new_model(**settings)
        train(model, setup.train, training_set, setup.plan)
        seconds = time.perf_counter() - started
        for budget, configuration in targets(setup):
            found = evaluate(model, setup.validation, configuration, batch_size=256)
            record.results.append(result_of(setup.plan, method, budget, found, model.bits, seconds))
        write_record(record, folder)
    return record


def targets(setup: Setup) -> Iterator[tuple[float | None, list]]:
    """Budgets with their configurations, and arbitrary configurations, which have no budget."""
    for budget in setup.run.profile.budgets:
        yield budget, setup.allocated(budget)
    generator = torch.Generator().manual_seed(2**31 + setup.run.seed)
    for _ in range(ARBITRARY):
        yield None, random_configuration(len(setup.weights), generator)


def option_table(folder: str | Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows for :func:`~coalora_lib.experiments.table`: a row an option.

    Args:
        folder: of records, one a seed.

    Raises:
        ValueError: there are no records, or they differ in more than the seed.
    """
    records = read_records(folder)
    budgets = sorted({r.budget for r in records[0].results if r.budget is not None})
    methods = list(dict.fromkeys(result.method for result in records[0].results))
    rows = []
    for method in methods:
        cells = [_mean_and_spread(records, method, budget) for budget in (*budgets, None)]
        rows.append((method, *cells))
    return ("run", *(f"{budget:g} bits" for budget in budgets), "arbitrary"), rows


def _mean_and_spread(records: list[Record], method: str, budget: float | None) -> str:
    """Over seeds, in percent; arbitrary configurations are averaged within a seed first."""
    seeds = [
        100 * mean(r.accuracy for r in record.results if (r.method, r.budget) == (method, budget))
        for record in records
    ]
    return f"{mean(seeds):.1f} ({stdev(seeds):.1f})" if len(seeds) > 1 else f"{seeds[0]:.1f}"
