"""One run for all configurations against a run for each: which runs, and how one is made."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import HEADS
from coalora_lib.adapter.saving import trained_parameters
from coalora_lib.configuration import mean_bits
from coalora_lib.experiments.methods import EVERY_METHOD, TEACHER, Configuration, Method
from coalora_lib.experiments.profiles import Profile
from coalora_lib.experiments.records import (
    Record,
    SearchedSet,
    Twins,
    digits,
    new_record,
    record_path,
    result_of,
    write_record,
)
from coalora_lib.experiments.run import Run
from coalora_lib.experiments.setup import Setup
from coalora_lib.search import SearchPlan
from coalora_lib.training import TrainingPlan, train
from coalora_lib.training.alternation import to_flat
from coalora_lib.training.evaluation import evaluate_each

#: Bits of a parameter in float32.
UNQUANTIZED = 32.0


@dataclass(frozen=True)
class Job:
    """One run of the comparison.

    Attributes:
        method: of :data:`~coalora_lib.experiments.methods.EVERY_METHOD`; budget: of a run for one.
        rank: of the LoRA factors; seed: of everything random.
    """

    method: str
    rank: int
    seed: int
    budget: float | None = None

    @property
    def experiment(self) -> str:
        """What the record is called."""
        name = self.method.lower().replace(",", "").replace(" ", "-")
        budget = "" if self.budget is None else f"-{self.budget:g}bits"
        return f"{name}-rank{self.rank}{budget}"


def all_jobs(
    profile: Profile, ranks: Sequence[int], seeds: Sequence[int], methods: Sequence[str]
) -> list[Job]:
    """Every run of the comparison, seed by seed.

    Raises:
        ValueError: a method is not known.
    """
    for name in methods:
        if name not in EVERY_METHOD:
            raise ValueError(f"method={name!r} is not known; allowed: {'; '.join(EVERY_METHOD)}")
    return [
        Job(name, rank, seed, budget)
        for seed in seeds
        for position, rank in enumerate(ranks)
        for name in methods
        if EVERY_METHOD[name].has_rank or position == 0
        for budget in (profile.budgets if EVERY_METHOD[name].trains_on == "budget" else (None,))
    ]


def job_of(record: Record) -> tuple[Job, Run]:
    """What to run to make a record again.

    Raises:
        ValueError: it is no record of the comparison.
    """
    methods = {result.method for result in record.results}
    if len(methods) != 1 or not methods <= EVERY_METHOD.keys():
        raise ValueError(f"{record.experiment} is no run of the comparison")
    (method,) = methods
    budget = record.results[0].budget if EVERY_METHOD[method].trains_on == "budget" else None
    profile = TypeAdapter(Profile).validate_python(record.parameters)
    job = Job(method, record.rank, record.seed, budget)
    if job.experiment != record.experiment:
        raise ValueError(f"{record.experiment} is no run of the comparison")
    return job, Run(profile, record.seed, record.dataset)


def path_of(job: Job, run: Run, folder: str | Path) -> Path:
    """Where the record of a job stands."""
    return record_path(folder, job.experiment, run.dataset, run.profile.name, job.seed)


def run_job(setup: Setup, job: Job, folder: str | Path) -> Path:
    """Train and evaluate, and write the record.

    Args:
        setup: the shared ground of the job's seed; its rank is the job's in the run.
        job: what to run.
        folder: for the record.
    """
    profile = replace(setup.run.profile, rank=job.rank)
    setup = replace(setup, run=replace(setup.run, profile=profile))
    method, over_set = EVERY_METHOD[job.method], EVERY_METHOD[job.method].trains_on == "set"
    setup, plan = setup.with_scheme(method.scheme), plan_of(setup, method)
    record, phase = new_record(job.experiment, setup), Phases()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with phase("preparation"):
        one = None if job.budget is None else setup.allocated(job.budget)
        model = method.make(setup, one)
        aware = isinstance(model, CoaLora)  # of configurations; others have theirs built in
        first = setup.training_set() if over_set else [one] if aware else None
    teacher = None
    if method.teacher == "model":
        with phase("teacher"):
            teacher = TEACHER.make(setup, None)
            train(teacher, setup.train, None, replace(plan, distillation=0.0, teacher="none"))
    with phase("training"):
        history = train(
            model,
            setup.train,
            first,
            plan,
            search=search_of(profile, method),
            scoring=setup.scoring,
            teacher=teacher,
        )
    seconds = sum(phase.spent.values())
    record.searches = [SearchedSet.of(found) for found in history.rounds]
    with phase("evaluation"):
        wanted = list(targets(setup, job))
        if over_set:
            pairs = unmet_twins(setup, record)
            wanted += [(None, configuration) for pair in pairs for configuration in pair]
        switched = (configuration if aware else None for _, configuration in wanted)
        found_each = evaluate_each(model, setup.validation, switched, batch_size=256)
        results = []
        for (budget, configuration), found in zip(wanted, found_each, strict=True):
            bits = UNQUANTIZED
            if configuration is not None:
                bits = mean_bits(configuration, setup.sizes)
            results.append(result_of(plan, job.method, budget, found, bits, seconds))
    if over_set:
        cut = len(results) - 2 * len(pairs)
        twins = zip(results[cut::2], results[cut + 1 :: 2], strict=True)
        record.twins = [Twins(seen=seen, unseen=unseen) for seen, unseen in twins]
        results = results[:cut]
    record.results = results
    phase.spent["search"] = round(history.search_seconds, 2)
    phase.spent["training"] = round(phase.spent["training"] - history.search_seconds, 2)
    record.phases = phase.spent
    if torch.cuda.is_available():
        record.peak_memory = torch.cuda.max_memory_allocated()
    record.stored = stored_numbers(model)
    return write_record(record, folder)


def plan_of(setup: Setup, method: Method) -> TrainingPlan:
    """The shared plan as a method runs it: with as many forward-backward passes as all others."""
    plan = replace(setup.plan, learning_rate=method.rate * setup.plan.learning_rate)
    count = method.configurations_per_step or plan.configurations_per_step
    steps = max(1, plan.steps * plan.configurations_per_step // count)
    plan = replace(plan, steps=steps, configurations_per_step=count)
    return replace(plan, distillation=method.distillation, teacher=method.teacher)


def search_of(profile: Profile, method: Method) -> SearchPlan | None:
    """The profile's search as a method runs it; None if it does not."""
    if method.trains_on != "set" or not method.searches:
        return None
    return replace(profile.search, segments=None) if method.keeps_all else profile.search


def targets(setup: Setup, job: Job) -> Iterator[tuple[float | None, Configuration | None]]:
    """What a job's model is evaluated on: (budget, configuration).

    A run for one budget: its configuration. One run for all: those of all budgets, then arbitrary
    ones, without a budget and the same for all methods. An unquantized model: (None, None).
    """
    kind = EVERY_METHOD[job.method].trains_on
    if kind == "nothing":
        yield None, None
        return
    for budget in setup.run.profile.budgets if job.budget is None else (job.budget,):
        yield budget, setup.allocated(budget)
    if kind == "set":
        for configuration in setup.arbitrary():
            yield None, configuration


def unmet_twins(setup: Setup, record: Record) -> list[tuple[Configuration, Configuration]]:
    """The set-up's twins, but for those whose unseen one a search of the run has met."""
    met = {row for found in record.searches for row in found.configurations}
    return [
        (seen, unseen) for seen, unseen in setup.twins() if not met & set(digits(to_flat([unseen])))
    ]


def stored_numbers(model: nn.Module) -> int:
    """Numbers that a run adds to the pre-trained weights, beside the heads, which all train alike.

    What it trained, and the layers' mean inputs if it corrects biases.
    """
    trained = sum(
        parameter.numel()
        for name, parameter in trained_parameters(model).items()
        if not any(part in HEADS for part in name.split("."))
    )
    means = model.mean_inputs.values() if isinstance(model, CoaLora) else ()
    return trained + sum(mean.numel() for mean in means)


class Phases:
    """Wall seconds of the phases of a run."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what happens inside to a phase."""
        started = time.perf_counter()
        yield
        self.spent[name] = round(time.perf_counter() - started, 2)
