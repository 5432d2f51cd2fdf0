"""A grid: a YAML file that describes runs, checked before anything starts.

.. code-block:: yaml

    methods: [coa-lora, lq-lora]    # or chapters: ["06"], and parameters: {...} for them
    ranks: [4, 8]
    seeds: {from: 0, to: 4}         # a value, a list, or a range, whose end is in it
    profile: standard
    dataset: sst2
    learning_rate: [0.0005, 0.001]  # or another of SETTINGS; left out, it is the profile's
    exclude:
      - {method: lq-lora, rank: 8}
    results: _build/results/rates
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from coalora_lib.batch.jobs import BatchJob, MethodRun, chapter_run
from coalora_lib.validation import describe, flat, not_known

#: Jobs of a grid, values of a range, and bytes of its file, at most.
MOST_JOBS, MOST_BYTES = 100_000, 2**20
#: Of a profile, what a grid may change.
SETTINGS = (
    "learning_rate",
    "epochs",
    "batch_size",
    "alpha",
    "configurations_per_step",
    "max_length",
    "train_examples",
    "validation_examples",
)
#: Keys of a grid by the names that one job's values have.
KEYS = {"method": "methods", "chapter": "chapters", "rank": "ranks", "seed": "seeds"}


def expanded(given: Any) -> Any:
    """A value, a list or a range as a list; a ValueError if a range is none."""
    if not isinstance(given, Mapping):
        return given if isinstance(given, list | tuple) else [given]
    for key in given:
        if key not in ("from", "to", "step"):
            raise ValueError(not_known(f"key {key!r} of a range", ("from", "to", "step")))
    first, last, step = given.get("from", 0), given.get("to", ""), given.get("step", 1)
    if any(type(each) not in (int, float) for each in (first, last, step)):
        raise ValueError("a range needs numbers: from (0 if left out), to, step (1 if left out)")
    if not (math.isfinite(first) and math.isfinite(last)) or step <= 0 or last < first:
        raise ValueError(f"range from {first} to {last} by {step} holds nothing")
    count = math.floor((last - first) / step + 1e-9) + 1
    if count > MOST_JOBS:
        raise ValueError(f"a range has {count} values; allowed: {MOST_JOBS}")
    values = (first + step * number for number in range(count))
    return [each if isinstance(each, int) else float(f"{each:.12g}") for each in values]


def _number(given: Any) -> Any:
    """YAML takes 1e-3 for a text, and pydantic a truth value for a number."""
    if isinstance(given, bool):
        raise ValueError("a number is needed")
    return given


def _sorted(given: tuple) -> tuple:
    return tuple(sorted(set(given)))


def _known_profiles(given: tuple[str, ...]) -> tuple[str, ...]:
    from coalora_lib.experiments import PROFILES

    return _all_known("profile", given, PROFILES)


def _known_datasets(given: tuple[str, ...]) -> tuple[str, ...]:
    from coalora_lib.tasks import TASKS

    return _all_known("dataset", given, ["embedded", *TASKS])


def _known_methods(given: tuple[str, ...]) -> tuple[str, ...]:
    from coalora_lib.experiments.methods import METHODS

    return _all_known("method", given, METHODS)


def _all_known(name: str, given: tuple[str, ...], allowed: Any) -> tuple[str, ...]:
    """Each once, in the order of what is allowed."""
    for value in given:
        if value not in allowed:
            raise ValueError(not_known(f"{name}={value!r}", allowed))
    return tuple(each for each in allowed if each in given)


_Text = Annotated[str, Strict()]
_Count = Annotated[int, Strict(), Field(ge=1, le=2**31)]
_Rank = Annotated[int, Strict(), Field(ge=1, le=2**20)]
_Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
_Texts = Annotated[tuple[_Text, ...], BeforeValidator(expanded)]
_Ranks = Annotated[tuple[_Rank, ...], BeforeValidator(expanded), AfterValidator(_sorted)]
_Counts = Annotated[tuple[_Count, ...], BeforeValidator(expanded), AfterValidator(_sorted)]
_Positives = Annotated[tuple[_Positive, ...], BeforeValidator(expanded), AfterValidator(_sorted)]
_Seed = Annotated[int, Strict(), Field(ge=0, lt=2**32)]


class Grid(BaseModel):
    """What is to be run; see the module. Empty fields are the profile's, or a chapter's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: Annotated[_Texts, AfterValidator(_known_methods)] = ()
    chapters: _Texts = ()
    parameters: dict[str, Annotated[tuple[Any, ...], BeforeValidator(expanded)]] = {}
    ranks: _Ranks = ()
    seeds: Annotated[
        tuple[_Seed, ...], BeforeValidator(expanded), AfterValidator(_sorted), Field(min_length=1)
    ] = (0,)
    profile: Annotated[_Texts, AfterValidator(_known_profiles), Field(min_length=1)] = ("quick",)
    dataset: Annotated[_Texts, AfterValidator(_known_datasets), Field(min_length=1)] = ("embedded",)
    learning_rate: _Positives = ()
    epochs: _Positives = ()
    batch_size: _Counts = ()
    alpha: _Positives = ()
    configurations_per_step: _Counts = ()
    max_length: _Counts = ()
    train_examples: _Counts = ()
    validation_examples: _Counts = ()
    exclude: list[dict[str, Annotated[tuple[Any, ...], BeforeValidator(expanded)]]] = []
    results: Path = Path("_build/results")

    @classmethod
    def read(cls, path: str | Path | None, changes: Sequence[str] = ()) -> Self:
        """From a file, if one is given, and ``key=value`` texts, whose values are YAML.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a grid; file, key, value and the allowed values are named.
        """
        name, content = str(path or "the grid"), {}
        if path is not None:
            if Path(path).stat().st_size > MOST_BYTES:
                raise ValueError(f"{name} is not a grid: it has more than {MOST_BYTES} bytes")
            content = _parsed(Path(path).read_bytes(), name)
            if not isinstance(content, dict):
                raise ValueError(f"{name} is not a grid: it must have keys and values")
        for change in changes:
            key, equals, value = change.partition("=")
            if not equals:
                raise ValueError(f"{change!r} must be key=value, such as ranks=[4,8]")
            content[key.strip()] = _parsed(value.encode(), change)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ValueError(f"{name}: {describe(error)}") from None

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(not_known(f"key {key!r}", cls.model_fields))
        return given

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.methods) == bool(self.chapters):
            raise ValueError("a grid must have either methods or chapters")
        of_methods = ("ranks", *SETTINGS)
        wrong = ("parameters",) if self.methods else of_methods
        if found := self.model_fields_set.intersection(wrong):
            kind = "chapters" if self.methods else "methods"
            raise ValueError(f"{min(found)} is for {kind}")
        return self

    def jobs(self, root: Path = Path()) -> list[BatchJob]:
        """Each job once, seed by seed; ``root`` is the project's folder, for chapters.

        Raises:
            ValueError: a chapter, a parameter or its value is not allowed, a profile is not for a
                data set, what is excluded is not there, or nothing is left.
        """
        combinations = list(self._chapters(root) if self.chapters else self._methods())
        kept = [job for values, job in combinations if not self._excluded(values)]
        for each in self.exclude:
            if not any(_matches(each, values) for values, _ in combinations):
                raise ValueError(f"exclude: no job matches {flat(_said(each)):.200}")
        if not kept:
            raise ValueError("the grid is empty")
        return list({job.name: job for job in kept}.values())

    def _excluded(self, values: Mapping[str, Any]) -> bool:
        return any(_matches(each, values) for each in self.exclude)

    def _methods(self) -> Iterator[tuple[dict[str, Any], BatchJob]]:
        from coalora_lib.experiments import PROFILES, Run
        from coalora_lib.experiments.runner import all_jobs
        from coalora_lib.experiments.setup import refuse_misfit

        given = {name: getattr(self, name) for name in SETTINGS if getattr(self, name)}
        _refuse_too_many([self.profile, self.dataset, self.seeds, self.ranks, *given.values()])
        for profile, dataset, *values in product(self.profile, self.dataset, *given.values()):
            settings = dict(zip(given, values, strict=True))
            run = Run(_changed(PROFILES[profile], settings), 0, dataset)
            refuse_misfit(run)
            ranks = self.ranks or (run.profile.rank,)
            for seed, rank, method in product(self.seeds, ranks, self.methods):
                about = {"method": method, "rank": rank, "seed": seed}
                about |= {"profile": profile, "dataset": dataset} | settings
                for job in all_jobs(run.profile, [rank], [seed], [method]):
                    yield about, MethodRun(job, run)

    def _chapters(self, root: Path) -> Iterator[tuple[dict[str, Any], BatchJob]]:
        from coalora_lib.batch.chapters import chapters_named, checked

        known = {"profile": self.profile, "dataset": self.dataset, "seed": self.seeds}
        fields = {"profile": "profile", "dataset": "dataset", "seed": "seeds"}
        given = {n: v for n, v in known.items() if fields[n] in self.model_fields_set}
        given |= self.parameters
        _refuse_too_many(list(given.values()))
        for chapter, values in checked(root, chapters_named(root, self.chapters), given):
            for each in product(*values.values()):
                parameters = dict(zip(values, each, strict=True))
                about = {"chapter": chapter.stem} | parameters
                yield about, chapter_run(root, chapter, parameters)


def _changed(profile: Any, settings: dict[str, Any]) -> Any:
    """A profile with other settings has another name: its records stand beside the profile's."""
    other = {name: value for name, value in settings.items() if getattr(profile, name) != value}
    name = "-".join([profile.name, *(f"{key}{value}" for key, value in other.items())])
    return replace(profile, name=name.replace("+", ""), **other)


def _matches(pattern: Mapping[str, Sequence[Any]], values: Mapping[str, Any]) -> bool:
    return all(name in values and values[name] in among for name, among in pattern.items())


def _said(pattern: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{name}={'|'.join(map(str, among))}" for name, among in pattern.items())


def _refuse_too_many(axes: Sequence[Sequence[Any]]) -> None:
    count = math.prod(max(1, len(axis)) for axis in axes)
    if count > MOST_JOBS:
        raise ValueError(f"the grid has {count} jobs and more; allowed: {MOST_JOBS}")


def _parsed(content: bytes, name: str) -> Any:
    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{name} is not YAML: {flat(error):.200}") from None
