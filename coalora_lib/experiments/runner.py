"""One run of an experiment: train, evaluate, record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils.benchmark import timer  # it waits for the GPU

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.heads import find_heads, is_inside
from coalora_lib.adapter.saving import trained_parameters
from coalora_lib.experiments.makers import Fitter
from coalora_lib.experiments.methods import METHODS, TEACHER, Method
from coalora_lib.experiments.profiles import Profile, Run
from coalora_lib.experiments.setup import Setup
from coalora_lib.records import Job, Record, Result, SearchedSet, Twins, write_record
from coalora_lib.records.environment import code_digest, device_name, git_commit, versions
from coalora_lib.records.schema import UNQUANTIZED, Phase, as_text, pack
from coalora_lib.spaces import Configuration
from coalora_lib.tasks import checkpoint_checksum, data_checksum
from coalora_lib.training import History, TrainingPlan, train
from coalora_lib.training.evaluation import Evaluation, evaluate_each, transformers_model
from coalora_lib.validation import describe

#: Examples that an evaluation takes at a time: 256 sentences of 128 tokens fill a GPU.
EVALUATION_BATCH = 256

#: Makes a model ready for a configuration.
Preparation = Callable[[Configuration | None], None]


def job_for(slug: str, rank: int, seed: int, budget: float | None = None) -> Job:
    """A run of a method; a ValueError if it is not known, needs a budget or takes none."""
    method = _known(slug)
    if (method.trains_on in ("budget", "arbitrary")) != (budget is not None):
        needs = "needs a budget" if budget is None else "takes no budget"
        raise ValueError(f"a run of {slug} {needs}, got budget={budget}")
    return Job(slug, rank if method.has_rank else None, seed, budget, method.space)


def _known(slug: str) -> Method:
    if slug not in METHODS:
        raise ValueError(f"method={slug!r} is not known; allowed: {', '.join(METHODS)}")
    return METHODS[slug]


def all_jobs(
    profile: Profile, ranks: Sequence[int], seeds: Sequence[int], methods: Sequence[str]
) -> list[Job]:
    """Every run of these methods, seed by seed, each once.

    Raises:
        ValueError: one is not known, or not for the profile's kind of task.
    """
    for slug in methods:
        kinds = _known(slug).experiment.kinds
        if profile.kind not in kinds:
            raise ValueError(
                f"method {slug!r} is for {' or '.join(kinds)}; profile {profile.name!r} is of kind "
                f"{profile.kind!r}"
            )
    jobs = (
        job_for(slug, rank, seed, budget)
        for seed in seeds
        for rank in ranks
        for slug in methods
        for budget in _known(slug).budgets(profile)
    )
    return list(dict.fromkeys(jobs))


def run_of(record: Record) -> Run:
    """To make a record again; a ValueError if it has no known method or no profile's parameters."""
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
    return Path(folder) / job.file_name(run.dataset, run.profile.name)


def run_job(
    setup: Setup, job: Job, folder: str | Path, checkpoints: str | Path | None = None
) -> Path:
    """Make a job's record, as :func:`make_record`, and write it."""
    return write_record(make_record(setup, job, checkpoints), folder)


def make_record(setup: Setup, job: Job, checkpoints: str | Path | None = None) -> Record:
    """Train and evaluate on the shared ground of the job's seed.

    With a folder for checkpoints a killed run continues; its times are those of a run without
    interruption.
    """
    method = METHODS[job.method]
    setup = setup.with_space(job.space)
    record = _new_record(job, setup)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with _phase(record, "preparation"):
        if method.sensitive:
            setup = setup.by_sensitivity()
        one = None if job.budget is None else method.one(setup, job.budget)[1]
        model = method.make(setup, job.rank, one, **method.adapter)
    prepare = _fitting(record, setup, model, method.fitter)
    steps = _train(record, setup, model, one, prepare, checkpoints) if method.trained else 0
    if method.refitter is not None and isinstance(model, CoaLora):
        model.layers.fitted.clear()
        prepare = _fitting(record, setup, model, method.refitter)
    with _phase(record, "evaluation"):
        _evaluate_into(record, setup, model, prepare, steps)
    if torch.cuda.is_available():
        record.peak_memory = torch.cuda.max_memory_allocated()
    record.stored = _stored_numbers(model, method)
    return record


def _train(
    record: Record,
    setup: Setup,
    model: nn.Module,
    one: Configuration | None,
    prepare: Preparation,
    checkpoints: str | Path | None,
) -> int:
    """Train over the method's set, or on the configuration of a run for one: how many steps."""
    job, method = record.job, METHODS[record.job.method]
    plan, kind = plan_of(setup, method), setup.objective

    def trained(phase: Phase, model: nn.Module, *given: Any, **settings: Any) -> History:
        place = None if checkpoints is None else Path(checkpoints) / phase
        history = train(model, setup.train, *given, kind=kind, checkpoints=place, **settings)
        record.phases[phase] = round(history.seconds - history.search_seconds, 2)
        return history

    with _phase(record, "preparation"):
        # A model that does not know of configurations has its own built in.
        first = [one] if one is not None and isinstance(model, CoaLora) else None
        if method.trains_on == "set":
            first = method.first_set(setup)
        teacher = TEACHER.make(setup, job.rank, None) if plan.teacher == "model" else None
    for configuration in first or ():
        prepare(configuration)
    if teacher is not None:
        trained("teacher", teacher, None, replace(plan, distillation=0.0, teacher="none"))
    search = None
    if method.search is not None:
        search = replace(setup.run.profile.search, **method.search)
    history = trained(
        "training", model, first, plan, search=search, scoring=setup.scoring, teacher=teacher
    )
    record.phases["search"] = round(history.search_seconds, 2)
    rows = setup.space.rows
    record.searches = [
        SearchedSet.of(rows(each.configurations), each.losses, each.costs, each.proposed, each.kept)
        for each in history.rounds
    ]
    return plan.steps


def _fitting(record: Record, setup: Setup, model: nn.Module, fitter: Fitter | None) -> Preparation:
    """What prepares a model for a configuration that it has not met, if its method does that."""
    if fitter is None or not isinstance(model, CoaLora):
        return lambda _: None
    fit = cache(lambda: fitter(setup, model))  # at first use: some aim at the trained model

    def prepare(configuration: Configuration | None) -> None:
        if configuration is not None and tuple(configuration) not in model.layers.fitted:
            with _phase(record, "fitting"):
                fit()(configuration)

    return prepare


@contextmanager
def _phase(record: Record, name: Phase) -> Iterator[None]:
    """Count the wall seconds of what happens inside to a phase, but for phases inside of it."""
    started, before = timer(), sum(record.phases.values())
    yield
    inside = sum(record.phases.values()) - before
    spent = record.phases.get(name, 0.0) + timer() - started - inside
    record.phases[name] = round(spent, 2)


def identity_of(job: Job, run: Run, data: str, model: str) -> dict[str, Any]:
    """The fields in which two records of one job agree; ``data`` and ``model`` are checksums."""
    parameters = json.loads(json.dumps(asdict(run.profile)))
    del parameters["rank"]  # the job's counts
    return {
        "protocol": METHODS[job.method].experiment.protocol,
        "job": job,
        "dataset": run.dataset,
        "data_checksum": data,
        "model": run.profile.model,
        "model_checksum": model,
        "profile": run.profile.name,
        "parameters": parameters,
    }


def _new_record(job: Job, setup: Setup) -> Record:
    """Of a run on this machine, without results yet."""
    data, model = data_checksum(setup.splits), checkpoint_checksum(setup.run.profile.model)
    return Record(
        **identity_of(job, setup.run, data, model),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        synthetic=setup.run.dataset == "embedded",
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


def _evaluate_into(
    record: Record, setup: Setup, model: nn.Module, prepare: Preparation, steps: int
) -> None:
    """Evaluate on targets and twins."""
    seconds = round(sum(record.phases.values()), 2)
    passes = steps * plan_of(setup, METHODS[record.job.method]).configurations_per_step
    targets, pairs = targets_of(record, setup), _twins_of(record, setup)
    wanted = [*targets, *((None, each) for pair in pairs for each in pair)]

    def switched() -> Iterator[Configuration | None]:
        for _, configuration in wanted:
            prepare(configuration)
            yield configuration if isinstance(model, CoaLora) else None

    on, kind = setup.validation, setup.objective
    found = evaluate_each(model, on, switched(), EVALUATION_BATCH, kind=kind)
    correlations = _correlations(setup, model)
    results = [
        Result(
            budget=budget,
            bits=UNQUANTIZED if one is None else setup.space.mean_bits(one, setup.shapes),
            seconds=seconds,
            steps=steps,
            passes=passes,
            spearman=next(correlations),
            **_measured(evaluation),
        )
        for (budget, one), evaluation in zip(wanted, found, strict=True)
    ]
    record.results, rest = results[: len(targets)], results[len(targets) :]
    twins = zip(rest[::2], rest[1::2], strict=True)
    record.twins = [Twins(seen=seen, unseen=unseen) for seen, unseen in twins]


def _measured(evaluation: Evaluation) -> dict[str, Any]:
    """What an evaluation gives of a result; None is what its kind of task does not have."""
    objective, metrics = evaluation.objective, evaluation.metrics
    right = objective.right(evaluation.predicted, evaluation.expected)
    return {
        "accuracy": metrics.get("token_accuracy" if objective.of_tokens else "accuracy"),
        "loss": evaluation.loss,
        "neighbours": metrics.get("neighbours"),
        "agreement": metrics.get("agreement"),
        "examples": len(evaluation.predicted if right is None else right),
        "correct": None if right is None or objective.of_tokens else pack(right),
    }


def _correlations(setup: Setup, model: nn.Module) -> Iterator[float | None]:
    """How well the model tells which texts are alike, as it is configured when this is asked."""
    if setup.pairs is None:
        yield from repeat(None)
        return
    examples = setup.pairs.examples
    for found in evaluate_each(model, examples, repeat(None), batch_size=EVALUATION_BATCH):
        yield setup.pairs.correlation(found.predicted)


def targets_of(record: Record, setup: Setup) -> Sequence[tuple[float | None, Configuration | None]]:
    """(budget, configuration) of all that a job's model is evaluated on."""
    method, budget = METHODS[record.job.method], record.job.budget
    if method.trains_on == "nothing":
        return [(None, None)]
    if budget is not None:
        return [method.one(setup, budget)]
    targets = method.experiment.targets(setup)
    if not method.experiment.unmet:
        return targets
    first = _as_text(setup, method.first_set(setup))
    return _unmet(record, setup, targets, first)


def _twins_of(record: Record, setup: Setup) -> list[tuple[Configuration, Configuration]]:
    """The set-up's twins, but for those whose unseen one a search of the run has met."""
    method = METHODS[record.job.method]
    fitted = method.fitter or method.refitter  # to one that was trained on as to any other
    if method.trains_on != "set" or not method.experiment.twins or fitted:
        return []
    return _unmet(record, setup, setup.twins())


def _unmet(record: Record, setup: Setup, pairs: list, seen: Iterable[str] = ()) -> list:
    """The pairs whose second configuration was neither seen nor scored by a search of the run."""
    met = {text for found in record.searches for text in found.configurations} | set(seen)
    return [pair for pair in pairs if not met.intersection(_as_text(setup, pair[1:]))]


def _as_text(setup: Setup, configurations: Sequence[Configuration]) -> list[str]:
    return as_text(setup.space.rows(setup.space.to_flat(configurations)))


def _stored_numbers(model: nn.Module, method: Method) -> int:
    """What a run trained but for heads, which all train, and the moments of inputs that it keeps.

    The texts that configurations are fitted on are not counted.
    """
    plain = transformers_model(model) is model
    heads = find_heads(model) if plain else ()
    trained = sum(
        parameter.numel()
        for name, parameter in trained_parameters(model).items()
        if ".modules_to_save." not in name and not is_inside(name, heads)
    )
    kept: list[Tensor] = []
    if isinstance(model, CoaLora):  # layers with the same inputs share a second moment
        shared = {id(each): each for each in model.layers.second_moments.values()}
        kept = [*model.mean_inputs.values(), *shared.values()]
    return method.trained * trained + sum(each.numel() for each in kept)
