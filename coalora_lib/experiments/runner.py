"""One run of an experiment: train, evaluate, record."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import HEADS
from coalora_lib.adapter.saving import trained_parameters
from coalora_lib.experiments.methods import METHODS, TEACHER, Method
from coalora_lib.experiments.profiles import Profile
from coalora_lib.experiments.run import Run
from coalora_lib.experiments.setup import Setup
from coalora_lib.records import Job, Record, Result, SearchedSet, Twins, write_record
from coalora_lib.records.environment import code_digest, device_name, git_commit, versions
from coalora_lib.records.schema import UNQUANTIZED, Phase, as_text, describe, file_name, pack
from coalora_lib.spaces import Configuration, ConfigurationSpace
from coalora_lib.tasks import checkpoint_checksum, data_checksum
from coalora_lib.training import Evaluation, History, TrainingPlan, train
from coalora_lib.training.evaluation import evaluate_each

#: Examples that an evaluation takes at a time. No result depends on it but by rounding; 256
#: sentences of 128 tokens fill a GPU, and a few hundred MB.
EVALUATION_BATCH = 256


def job_for(slug: str, rank: int, seed: int, budget: float | None = None) -> Job:
    """A run of a method: no rank where it has none, and configurations from its space.

    Raises:
        ValueError: the method is not known, needs a budget or takes none.
    """
    if slug not in METHODS:
        raise ValueError(f"method={slug!r} is not known; allowed: {', '.join(METHODS)}")
    method = METHODS[slug]
    if (method.trains_on == "budget") != (budget is not None):
        needs = "needs a budget" if budget is None else "takes no budget"
        raise ValueError(f"a run of {slug} {needs}, got budget={budget}")
    return Job(slug, rank if method.has_rank else None, seed, budget, method.space)


def all_jobs(
    profile: Profile, ranks: Sequence[int], seeds: Sequence[int], methods: Sequence[str]
) -> list[Job]:
    """Every run of these methods, seed by seed, each once.

    Raises:
        ValueError: a method is not known.
    """
    jobs = (
        job_for(slug, rank, seed, budget)
        for seed in seeds
        for rank in ranks
        for slug in methods
        for budget in (
            profile.budgets if slug in METHODS and METHODS[slug].trains_on == "budget" else (None,)
        )
    )
    return list(dict.fromkeys(jobs))


def run_of(record: Record) -> Run:
    """Profile, seed and data set to make a record again with.

    Raises:
        ValueError: its method is not known, or its parameters are no profile's; the field at fault
            is named.
    """
    job = record.job
    if job.method not in METHODS:
        raise ValueError(f"{record.file_name}: method {job.method!r} is not known")
    try:
        # A method without factors has no rank, and what its profile says of one is not read.
        profile = TypeAdapter(Profile).validate_python(record.parameters | {"rank": job.rank or 0})
    except ValidationError as error:
        raise ValueError(f"{record.file_name}: parameters.{describe(error)}") from None
    return Run(profile, job.seed, record.dataset)


def path_of(job: Job, run: Run, folder: str | Path) -> Path:
    """Where the record of a job stands."""
    return Path(folder) / file_name(job, run.dataset, run.profile.name)


def run_job(setup: Setup, job: Job, folder: str | Path) -> Path:
    """Train and evaluate, and write the record.

    Args:
        setup: the shared ground of the job's seed.
        job: what to run; see :func:`job_for`.
        folder: for the record.
    """
    method = METHODS[job.method]
    setup = setup.with_space(job.space)
    plan = plan_of(setup, method)
    record, phase = new_record(job, setup), Phases()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with phase("preparation"):
        one = None if job.budget is None else setup.allocated(job.budget)
        model = method.make(setup, job.rank, one, **method.adapter)
        # A model that does not know of configurations has its own built in.
        first = [one] if one is not None and isinstance(model, CoaLora) else None
        if method.trains_on == "set":
            first = method.experiment.first_set(setup)
    teacher = None
    if plan.teacher == "model":
        with phase("teacher"):
            teacher = TEACHER.make(setup, job.rank, None)
            train(teacher, setup.train, None, replace(plan, distillation=0.0, teacher="none"))
    with phase("training"):
        search = None
        if method.search is not None:
            search = replace(setup.run.profile.search, **method.search)
        history = train(
            model, setup.train, first, plan, search=search, scoring=setup.scoring, teacher=teacher
        )
    seconds = sum(phase.spent.values())
    record.searches = searches_of(history, setup.space)
    with phase("evaluation"):
        evaluate_into(record, setup, model, plan, seconds)
    phase.spent["search"] = round(history.search_seconds, 2)
    phase.spent["training"] = round(phase.spent["training"] - history.search_seconds, 2)
    record.phases = phase.spent
    if torch.cuda.is_available():
        record.peak_memory = torch.cuda.max_memory_allocated()
    record.stored = stored_numbers(model)
    return write_record(record, folder)


def new_record(job: Job, setup: Setup) -> Record:
    """A record of a run on this machine, without results yet."""
    run = setup.run
    parameters = json.loads(json.dumps(asdict(run.profile)))
    del parameters["rank"]  # the job's counts
    return Record(
        protocol=METHODS[job.method].experiment.protocol,
        job=job,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=run.dataset,
        synthetic=run.dataset == "embedded",
        data_checksum=data_checksum(setup.splits),
        model=run.profile.model,
        model_checksum=checkpoint_checksum(run.profile.model),
        profile=run.profile.name,
        parameters=parameters,
        device=device_name(),
        versions=versions(),
        git_commit=git_commit(),
        code=code_digest(),
        results=[],
    )


def plan_of(setup: Setup, method: Method) -> TrainingPlan:
    """The shared plan as a method runs it: with as many forward-backward passes as all others."""
    shared = setup.plan
    plan = replace(shared, learning_rate=method.rate * shared.learning_rate, **method.plan)
    passes = shared.steps * shared.configurations_per_step
    return replace(plan, steps=max(1, passes // plan.configurations_per_step))


def searches_of(history: History, space: ConfigurationSpace) -> list[SearchedSet]:
    """What a training's searches saw and did, to be stored."""
    return [
        SearchedSet.of(
            space.rows(found.configurations),
            found.losses,
            found.costs,
            found.proposed,
            found.kept,
        )
        for found in history.rounds
    ]


def evaluate_into(
    record: Record, setup: Setup, model: nn.Module, plan: TrainingPlan, seconds: float
) -> None:
    """Evaluate a trained model on its targets, and then on its twins, into a record.

    Args:
        record: gets ``results`` and ``twins``; its searches are there.
        setup, model, plan: what was trained, and how.
        seconds: that the training took.
    """
    wanted, pairs = targets_of(record, setup), twins_of(record, setup)
    all_wanted = [*wanted, *((None, each) for pair in pairs for each in pair)]
    aware = isinstance(model, CoaLora)
    switched = (configuration if aware else None for _, configuration in all_wanted)
    found = evaluate_each(model, setup.validation, switched, batch_size=EVALUATION_BATCH)
    results = []
    for (budget, configuration), evaluation in zip(all_wanted, found, strict=True):
        bits = UNQUANTIZED
        if configuration is not None:
            bits = setup.space.mean_bits(configuration, setup.shapes)
        results.append(result_of(plan, budget, evaluation, bits, seconds))
    record.results = results[: len(wanted)]
    rest = iter(results[len(wanted) :])
    record.twins = [
        Twins(seen=seen, unseen=unseen) for seen, unseen in zip(rest, rest, strict=True)
    ]


def targets_of(record: Record, setup: Setup) -> Sequence[tuple[float | None, Configuration | None]]:
    """What a job's model is evaluated on: (budget, configuration).

    A run for one budget: its configuration. A run over a set: those of its experiment. An
    unquantized model: (None, None).
    """
    method, budget = METHODS[record.job.method], record.job.budget
    if method.trains_on == "nothing":
        return [(None, None)]
    if budget is not None:
        return [(budget, setup.allocated(budget))]
    targets = method.experiment.targets(setup)
    if not method.experiment.unmet:
        return targets
    met = scored_in(record) | set(_texts(setup, method.experiment.first_set(setup)))
    return [(budget, each) for budget, each in targets if not met & set(_texts(setup, [each]))]


def twins_of(record: Record, setup: Setup) -> list[tuple[Configuration, Configuration]]:
    """The set-up's twins, but for those whose unseen one a search of the run has met."""
    method = METHODS[record.job.method]
    if method.trains_on != "set" or not method.experiment.twins:
        return []
    met = scored_in(record)
    return [
        (seen, unseen) for seen, unseen in setup.twins() if not met & set(_texts(setup, [unseen]))
    ]


def scored_in(record: Record) -> set[str]:
    """The configurations that a run's searches scored, as a record has them."""
    return {text for found in record.searches for text in found.configurations}


def _texts(setup: Setup, configurations: Sequence[Configuration]) -> list[str]:
    return as_text(setup.space.rows(setup.space.to_flat(configurations)))


def result_of(
    plan: TrainingPlan, budget: float | None, evaluation: Evaluation, bits: float, seconds: float
) -> Result:
    """A result from an evaluation of a model trained with a plan."""
    return Result(
        budget=budget,
        bits=bits,
        accuracy=evaluation.accuracy,
        loss=evaluation.loss,
        examples=len(evaluation.correct),
        seconds=round(seconds, 2),
        steps=plan.steps,
        passes=plan.steps * plan.configurations_per_step,
        correct=None if evaluation.of_tokens else pack(evaluation.correct),
    )


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
        self.spent: dict[Phase, float] = {}

    @contextmanager
    def __call__(self, name: Phase) -> Iterator[None]:
        """Count what happens inside to a phase."""
        started = time.perf_counter()
        yield
        self.spent[name] = round(time.perf_counter() - started, 2)
