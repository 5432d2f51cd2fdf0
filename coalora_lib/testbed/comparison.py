"""Search strategies compared on landscapes with a known front, at equal numbers of scorings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from coalora_lib.allocation import spread
from coalora_lib.records.environment import versions
from coalora_lib.records.schema import Strict
from coalora_lib.records.store import write_json
from coalora_lib.search import ScoredSet, SearchPlan, extend, hypervolume
from coalora_lib.spaces import NORMAL_FLOAT
from coalora_lib.testbed.landscape import CHANCE, Landscape

#: The reference point of the hypervolumes: the loss of a guess, and more bits than the front has.
REFERENCE = (CHANCE, 8.5)
#: Budgets of the allocated configurations that the search starts from: as many as the standard
#: profile's, over nearly the whole range of bits (2.03 to 8.63).
START = spread(2.1, 7.6, 25)
#: Budgets at which the front is computed, every 0.05 bits.
FRONT = spread(2.1, 7.6, 111)
#: The name of the strategy that is no search: the allocation at further budgets between those.
ALLOCATION = "allocation"
#: Seed of the first landscape that is reported on; the search was tuned on seeds below.
FIRST_SEED = 100
#: Configurations that are proposed at a time, after which the hypervolume is recorded.
EVERY = 5
#: The sizes of the search; its longest walk is the standard profile's.
PLAN = SearchPlan(rounds=1, restarts=EVERY, max_steps=30)


class SyntheticRun(Strict):
    """One landscape, every strategy.

    Attributes:
        seed: of the landscape and of the strategies.
        true: hypervolume of the front; start: of the allocated set that all begin with.
        found: strategy to the hypervolume after each :data:`EVERY` scored configurations.
        seconds: strategy to the time its proposals took.
    """

    layers: int
    seed: int
    true: float
    start: float
    found: dict[str, list[float]]
    seconds: dict[str, float]

    def closed(self, strategy: str) -> list[float]:
        """The share of the gap between start and front that is closed, as the budget is spent."""
        gap = self.true - self.start
        # Rounded to the digits that the stored volumes hold; + 0.0 turns -0.0 into 0.0.
        return [round((value - self.start) / gap, 4) + 0.0 for value in self.found[strategy]]


class SyntheticRecord(Strict):
    """The synthetic comparison, with what made it."""

    plan: dict
    versions: dict[str, str]
    runs: list[SyntheticRun]


def compare_on_landscape(
    layers: int, seeds: Iterable[int], plan: SearchPlan, strategies: Sequence[str], path: Path
) -> SyntheticRecord:
    """Let strategies search the same landscapes, one for each seed; the record is written after
    each.

    Strategies are of :data:`~coalora_lib.search.STRATEGIES`, or :data:`ALLOCATION`; the plan's
    ``proposals`` are the budget of scored configurations. Landscapes that are in a record at
    ``path`` are not searched again.

    Raises:
        ValueError: the record that is there was made with another plan, versions or strategies.
    """
    sizes = {name: getattr(plan, name) for name in ("restarts", "max_steps", "proposals")}
    record = SyntheticRecord(plan={"layers": layers} | sizes, versions=versions(), runs=[])
    if path.exists():
        found = SyntheticRecord.model_validate_json(path.read_text())
        other = any(sorted(run.found) != sorted(strategies) for run in found.runs)
        if (found.plan, found.versions) != (record.plan, record.versions) or other:
            raise ValueError(f"{path} was made with another plan, versions or strategies")
        record = found
    there = {run.seed for run in record.runs}
    for seed in tqdm([seed for seed in seeds if seed not in there], "landscapes", disable=None):
        record.runs.append(search_landscape(layers, seed, plan, strategies))
        write_json(record, path, indent=1)
    return record


def search_landscape(
    layers: int, seed: int, plan: SearchPlan, strategies: Sequence[str]
) -> SyntheticRun:
    """One landscape, searched by each strategy from the same allocated set.

    :data:`ALLOCATION` does not search: it scores the configurations that allocation, without the
    sensitivities, finds at further budgets. It shows how much a denser set alone gains.
    """
    landscape = Landscape(layers, seed)
    start = landscape.allocated(START)

    def volume(indices: torch.Tensor, losses: torch.Tensor) -> float:
        points = torch.stack([losses, landscape.cost_of(indices)], dim=1)
        return hypervolume(points, REFERENCE)

    # The layers are of one kind here: a field has one length scale in all of them.
    sizes = NORMAL_FLOAT.cardinalities
    groups = torch.arange(len(sizes)).repeat(layers)
    scored = ScoredSet(start, landscape(start), landscape.cost_of, sizes * layers, groups)
    run = SyntheticRun(
        layers=layers,
        seed=seed,
        true=hypervolume(landscape.front(FRONT), REFERENCE),
        start=volume(start, scored.losses),
        found={},
        seconds={},
    )
    for strategy in strategies:
        began = time.perf_counter()
        if strategy == ALLOCATION:
            more = landscape.allocated(between(plan.proposals))
            ended = scored.extended(more, landscape(more))
        else:
            ended = extend(scored, landscape, replace(plan, strategy=strategy), seed)
        run.seconds[strategy] = round(time.perf_counter() - began, 2)
        counts = range(len(start) + EVERY, len(start) + plan.proposals + 1, EVERY)
        run.found[strategy] = [
            round(volume(ended.configurations[:n], ended.losses[:n]), 6) for n in counts
        ]
    return run


def between(count: int) -> list[float]:
    """``count`` budgets over the range of :data:`START`, none of them in it, in random order."""
    step = (START[-1] - START[0]) / count
    budgets = [START[0] + step * (i + 0.5) for i in range(count)]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return [budgets[i] for i in order.tolist()]
