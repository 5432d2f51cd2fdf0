"""One run for all configurations against a run for each: the methods, and how they are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import TypeAdapter
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import HEADS
from coalora_lib.adapter.saving import trained_parameters
from coalora_lib.configuration import LayerConfig, mean_bits
from coalora_lib.experiments.chapter import Run
from coalora_lib.experiments.profiles import Profile
from coalora_lib.experiments.records import (
    Record,
    SearchedSet,
    new_record,
    record_path,
    result_of,
    write_record,
)
from coalora_lib.experiments.setup import Setup
from coalora_lib.training import evaluate, train
from coalora_lib.training.baselines import BitWidthLora, full_fine_tuning, lora, lq_lora

#: Bits of a parameter in float32.
UNQUANTIZED = 32.0

Configuration = list[LayerConfig]


@dataclass(frozen=True)
class Method:
    """One way to serve configurations.

    Attributes:
        make: from the shared ground, and the configuration of a run for one, the model to train.
        trains_on: "set", one run over the training set, improved by the search; "budget", a run
            for each budget on that budget's configuration; "nothing", unquantized.
        has_rank: False for what has no LoRA factors, and runs once for all ranks.
    """

    make: Callable[[Setup, Configuration | None], nn.Module]
    trains_on: Literal["set", "budget", "nothing"]
    has_rank: bool = True


def _coa_lora(setup: Setup, _: Configuration | None) -> nn.Module:
    return setup.new_model(
        start="svd",
        output_bias=True,
        error_features=True,
        bias_correction=True,
        mean_inputs=setup.mean_inputs,
    )


def _bit_width_lora(setup: Setup, _: Configuration | None) -> nn.Module:
    profile = setup.run.profile
    return BitWidthLora(setup.new_base(), profile.rank, profile.alpha, setup.errors)


def _lq_lora(setup: Setup, configuration: Configuration | None) -> nn.Module:
    profile = setup.run.profile
    return lq_lora(setup.new_base(), configuration, profile.rank, profile.alpha)


def _plain(setup: Setup, _: Configuration | None) -> nn.Module:
    return setup.new_model(configuration_aware=False)


#: By name. Shared-LoRA and QLoRA are the same model, trained on the set or on one configuration.
METHODS: dict[str, Method] = {
    "CoA-LoRA": Method(_coa_lora, "set"),
    "CoA-LoRA, as published": Method(lambda setup, _: setup.new_model(start="svd"), "set"),
    "Shared-LoRA": Method(_plain, "set"),
    "LoRA by bit width": Method(_bit_width_lora, "set"),
    "LQ-LoRA": Method(_lq_lora, "budget"),
    "QLoRA": Method(_plain, "budget"),
    "LoRA, unquantized": Method(
        lambda setup, _: lora(setup.new_base(), setup.run.profile.rank, setup.run.profile.alpha),
        "nothing",
    ),
    "full fine-tuning": Method(
        lambda setup, _: full_fine_tuning(setup.new_base()), "nothing", has_rank=False
    ),
}


@dataclass(frozen=True)
class Job:
    """One run of the comparison.

    Attributes:
        method: of :data:`METHODS`; budget: of a run for one.
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
        if name not in METHODS:
            raise ValueError(f"method={name!r} is not known; allowed: {'; '.join(METHODS)}")
    return [
        Job(name, rank, seed, budget)
        for seed in seeds
        for position, rank in enumerate(ranks)
        for name in methods
        if METHODS[name].has_rank or position == 0
        for budget in (profile.budgets if METHODS[name].trains_on == "budget" else (None,))
    ]


def job_of(record: Record) -> tuple[Job, Run]:
    """What to run to make a record again.

    Raises:
        ValueError: it is no record of the comparison.
    """
    methods = {result.method for result in record.results}
    if len(methods) != 1 or not methods <= METHODS.keys():
        raise ValueError(f"{record.experiment} is no run of the comparison")
    (method,) = methods
    budget = record.results[0].budget if METHODS[method].trains_on == "budget" else None
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
    method, over_set = METHODS[job.method], METHODS[job.method].trains_on == "set"
    record, phase = new_record(job.experiment, setup), Phases()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with phase("preparation"):
        one = None if job.budget is None else setup.allocated(job.budget)
        model = method.make(setup, one)
        aware = isinstance(model, CoaLora)  # of configurations; others have theirs built in
        first = setup.training_set() if over_set else [one] if aware else None
    with phase("training"):
        history = train(
            model,
            setup.train,
            first,
            setup.plan,
            search=profile.search if over_set else None,
            scoring=setup.scoring,
        )
    seconds = sum(phase.spent.values())
    record.searches = [SearchedSet.of(found) for found in history.rounds]
    with phase("evaluation"):
        for budget, configuration in targets(setup, job):
            switched = configuration if aware else None
            found = evaluate(model, setup.validation, switched, batch_size=256)
            bits = UNQUANTIZED
            if configuration is not None:
                bits = mean_bits(configuration, setup.sizes)
            record.results.append(result_of(setup, job.method, budget, found, bits, seconds))
    phase.spent["search"] = round(history.search_seconds, 2)
    phase.spent["training"] = round(phase.spent["training"] - history.search_seconds, 2)
    record.phases = phase.spent
    if torch.cuda.is_available():
        record.peak_memory = torch.cuda.max_memory_allocated()
    record.stored = stored_numbers(model)
    return write_record(record, folder)


def targets(setup: Setup, job: Job) -> Iterator[tuple[float | None, Configuration | None]]:
    """What a job's model is evaluated on: (budget, configuration).

    A run for one budget: its configuration. One run for all: those of all budgets, then arbitrary
    ones, without a budget and the same for all methods. An unquantized model: (None, None).
    """
    kind = METHODS[job.method].trains_on
    if kind == "nothing":
        yield None, None
        return
    for budget in setup.run.profile.budgets if job.budget is None else (job.budget,):
        yield budget, setup.allocated(budget)
    if kind == "set":
        for configuration in setup.arbitrary():
            yield None, configuration


def stored_numbers(model: nn.Module) -> int:
    """Numbers trained beside the heads, which all methods train alike."""
    return sum(
        parameter.numel()
        for name, parameter in trained_parameters(model).items()
        if not any(part in HEADS for part in name.split("."))
    )


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
