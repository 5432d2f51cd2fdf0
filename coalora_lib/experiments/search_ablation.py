"""Search strategies on a real model, at equal numbers of scored configurations.

A model is trained with each of them and evaluated on configurations outside every set. On losses
whose Pareto front is known, :mod:`coalora_lib.testbed` compares them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

from coalora_lib.configuration import LayerConfig
from coalora_lib.experiments.profiles import Profile
from coalora_lib.experiments.records import (
    Record,
    SearchedSet,
    digits,
    new_record,
    read_records,
    result_of,
    write_record,
)
from coalora_lib.experiments.setup import Setup
from coalora_lib.training import evaluate, train
from coalora_lib.training.alternation import to_flat

#: The arms on a real model: strategy, and segments of the filter; None for no search at all.
ARMS: dict[str, tuple[str, int | None] | None] = {
    "frozen": None,
    "walk": ("walk", 40),
    "walk, all kept": ("walk", None),
    "random": ("random", 40),
    "random, all kept": ("random", None),
    "nsga2": ("nsga2", 40),
    "local search": ("local search", 40),
}
#: Allocated configurations that a model is evaluated on, in bits; no training budget is among them.
UNSEEN_BUDGETS = (2.3, 2.4, 2.6, 2.8, 3.0, 3.3, 3.6, 4.0, 4.5)


def ablation_size(profile: Profile, rank: int, epochs: float) -> Profile:
    """A profile as the ablation on a model runs it: searches between quarters of the training."""
    return replace(
        profile,
        rank=rank,
        epochs=epochs,
        scoring_examples=min(profile.scoring_examples, 512),
        search=replace(profile.search, rounds=4),
    )


def train_with_strategy(setup: Setup, arm: str, folder: str | Path, experiment: str) -> Record:
    """Train with one arm of :data:`ARMS` and evaluate on configurations outside every set.

    The set starts with the configurations allocated at the profile's budgets. All arms have the
    same steps, and all that search the same budget of scored configurations.

    Args:
        setup: the shared ground.
        arm: its name.
        folder: for the record.
        experiment: its name; the arm is added.

    Raises:
        ValueError: the arm is not known.
    """
    if arm not in ARMS:
        raise ValueError(f"arm={arm!r} is not known; allowed: {', '.join(ARMS)}")
    record = new_record(experiment_name(experiment, arm), setup)
    first = [setup.allocated(budget) for budget in setup.run.profile.training_budgets]
    search = None
    if ARMS[arm] is not None:
        strategy, segments = ARMS[arm]
        search = replace(setup.run.profile.search, strategy=strategy, segments=segments)
    started = time.perf_counter()
    model = setup.new_model()
    history = train(model, setup.train, first, setup.plan, search=search, scoring=setup.scoring)
    seconds = time.perf_counter() - started
    record.searches = [SearchedSet.of(found) for found in history.rounds]
    seen = {row for found in record.searches for row in found.configurations}
    seen |= set(digits(to_flat(first)))
    for budget, configuration in unseen_targets(setup):
        if seen & set(digits(to_flat([configuration]))):
            continue  # a search met it; the others are evaluated on it, so it may not count
        found = evaluate(model, setup.validation, configuration, batch_size=256)
        record.results.append(result_of(setup.plan, arm, budget, found, model.bits, seconds))
    write_record(record, folder)
    return record


def experiment_name(experiment: str, arm: str) -> str:
    """The experiment of an arm's records."""
    return f"{experiment}-{arm.replace(', ', '-').replace(' ', '-')}"


def unseen_accuracies(folder: str | Path) -> dict[str, dict[int, tuple[float, float]]]:
    """What the arms' records say, in percent.

    Args:
        folder: of records, one an arm and seed.

    Returns:
        Arm to seed to mean accuracy on the allocated and on the arbitrary configurations that
        all arms of that seed were evaluated on.

    Raises:
        ValueError: there are no records, or they differ in data, model, code or parameters other
            than the seed.
    """
    records = read_records(folder)
    common: dict[int, set[tuple[float | None, float]]] = {}
    for record in records:
        keys = {(result.budget, result.bits) for result in record.results}
        common[record.seed] = common.get(record.seed, keys) & keys
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for record in records:
        kept = [r for r in record.results if (r.budget, r.bits) in common[record.seed]]
        allocated = [100 * r.accuracy for r in kept if r.budget is not None]
        arbitrary = [100 * r.accuracy for r in kept if r.budget is None]
        by_seed = found.setdefault(kept[0].method, {})
        by_seed[record.seed] = (mean(allocated), mean(arbitrary))
    return found


def unseen_targets(setup: Setup) -> list[tuple[float | None, list[LayerConfig]]]:
    """Allocated configurations with their budgets, then arbitrary ones, the same for all arms."""
    targets = [(budget, setup.allocated(budget)) for budget in UNSEEN_BUDGETS]
    return targets + [(None, configuration) for configuration in setup.arbitrary()]
