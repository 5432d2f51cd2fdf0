"""Records of runs: one JSON file a run, with everything needed to say where a number came from."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from coalora_lib.experiments.run import Run
from coalora_lib.experiments.setup import Setup
from coalora_lib.files import atomic_file
from coalora_lib.search import Round
from coalora_lib.tasks import TaskSplits, checkpoint_checksum, data_checksum
from coalora_lib.training import Evaluation, TrainingPlan

#: The packages whose versions decide what a run computes.
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "botorch",
    "gpytorch",
    "scipy",
)


class Result(BaseModel):
    """One method under one configuration.

    Attributes:
        method: "CoA-LoRA", "Shared-LoRA", "QLoRA", or an option of CoA-LoRA.
        budget: mean bits per parameter asked for, None for an arbitrary configuration; bits: what
            the configuration stores.
        accuracy: 0 to 1, over ``examples``; loss: mean cross-entropy in nats.
        seconds: wall time of the training behind the number, search included; a run that serves
            several budgets is listed with its whole time at each.
        steps: optimizer steps; passes: forward-backward passes, steps times configurations.
        correct: which examples are right, in their order: :func:`pack`'s text; None of a language
            model, whose examples are tokens.
    """

    model_config = ConfigDict(extra="forbid")

    method: str
    budget: float | None
    bits: float
    accuracy: float
    loss: float
    examples: int
    seconds: float
    steps: int
    passes: int
    correct: str | None = None

    @property
    def correctness(self) -> np.ndarray:
        """(examples,) bool.

        Raises:
            ValueError: the record does not say which examples are right.
        """
        if self.correct is None:
            raise ValueError(f"{self.method} at {self.bits:g} bits: no correctness per example")
        bits = np.frombuffer(base64.b64decode(self.correct), dtype=np.uint8)
        return np.unpackbits(bits, count=self.examples).astype(bool)


def digits(configurations: Tensor) -> list[str]:
    """(n, 5 * layers) integers as text, a digit for each."""
    return ["".join(map(str, row)) for row in configurations.tolist()]


class SearchedSet(BaseModel):
    """What one search between two stretches of training saw and did.

    Attributes:
        configurations: the set and, last, what was proposed; each a string of the indices'
            digits, five a layer.
        losses, bits: of each, scored with the adapters of that moment.
        proposed: how many were proposed; kept: positions of the next set.
    """

    model_config = ConfigDict(extra="forbid")

    configurations: list[str]
    losses: list[float]
    bits: list[float]
    proposed: int
    kept: list[int]

    @classmethod
    def of(cls, found: Round) -> SearchedSet:
        """From what the training loop keeps; losses and bits to seven digits."""
        return cls(
            configurations=digits(found.configurations),
            losses=[float(f"{loss:.7g}") for loss in found.losses.tolist()],
            bits=[float(f"{bits:.7g}") for bits in found.costs.tolist()],
            proposed=found.proposed,
            kept=found.kept.tolist(),
        )

    @property
    def points(self) -> Tensor:
        """(n, 2) of [loss, bits], float64."""
        return torch.tensor([self.losses, self.bits], dtype=torch.float64).T

    @property
    def indices(self) -> Tensor:
        """(n, 5 * layers) int64."""
        return torch.tensor([[int(digit) for digit in row] for row in self.configurations])


class Twins(BaseModel):
    """A configuration of the training set, and one like it that the run never met."""

    model_config = ConfigDict(extra="forbid")

    seen: Result
    unseen: Result


class Record(BaseModel):
    """A run: where it came from, how it was made, what it found; its searches, if it had any.

    Attributes:
        twins: seen against unseen configurations, of a run over a set.
        code: :func:`code_digest` of the library that made it.
        phases: wall seconds of "preparation", "training", "search" and "evaluation", and of the
            "teacher" where there is one.
        peak_memory: bytes that torch held on the GPU at most; None on a processor.
        stored: numbers that the run adds to the pre-trained weights: factors, networks and mean
            inputs, not heads; all weights for full fine-tuning.
    """

    model_config = ConfigDict(extra="forbid")

    experiment: str
    created: str
    dataset: str
    synthetic: bool
    data_checksum: str
    model: str
    model_checksum: str
    profile: str
    parameters: dict[str, Any]
    seed: int
    device: str
    versions: dict[str, str]
    git_commit: str | None
    results: list[Result]
    twins: list[Twins] = []
    searches: list[SearchedSet] = []
    code: str | None = None
    phases: dict[str, float] = {}
    peak_memory: int | None = None
    stored: int | None = None

    @property
    def rank(self) -> int:
        """Of the LoRA factors."""
        return self.parameters["rank"]


def new_record(experiment: str, setup: Setup) -> Record:
    """A record of a run on this machine, without results yet."""
    run = setup.run
    return Record(
        experiment=experiment,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=run.dataset,
        synthetic=run.dataset == "embedded",
        data_checksum=data_checksum(setup.splits),
        model=run.profile.model,
        model_checksum=checkpoint_checksum(run.profile.model),
        profile=run.profile.name,
        parameters=json.loads(json.dumps(asdict(run.profile))),
        seed=run.seed,
        device=device_name(),
        versions=versions(),
        git_commit=git_commit(),
        code=code_digest(),
        results=[],
    )


def result_of(
    plan: TrainingPlan,
    method: str,
    budget: float | None,
    evaluation: Evaluation,
    bits: float,
    seconds: float,
) -> Result:
    """A result line from an evaluation of a model trained with a plan."""
    return Result(
        method=method,
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


def write_record(record: Record, folder: str | Path) -> Path:
    """Write a record as <experiment>-<dataset>-<profile>-seed<seed>.json, whole or not at all."""
    path = record_path(folder, record.experiment, record.dataset, record.profile, record.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(record.model_dump_json(indent=2) + "\n")
    return path


def record_path(folder: str | Path, experiment: str, dataset: str, profile: str, seed: int) -> Path:
    """Where a record stands in a folder."""
    return Path(folder) / f"{experiment}-{dataset}-{profile}-seed{seed}.json"


def read_record(path: str | Path) -> Record:
    """Read a record.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a record; the file and the field at fault are named.
    """
    try:
        return Record.model_validate_json(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a record: {error}") from None


def read_records(
    folder: str | Path, varying: Sequence[str] = (), mixed: bool = False
) -> list[Record]:
    """All records of a folder, made on the same ground.

    Args:
        folder: of records.
        varying: parameters that may differ ("rank"); the seed always may.
        mixed: take them as they are, whatever they differ in.

    Raises:
        ValueError: there are none, or two differ in data, model, profile, parameters, versions or
            the library's code; the first two such files are named.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise ValueError(f"{folder} holds no records")
    records = [read_record(path) for path in paths]
    for path, record in zip(paths, records, strict=True) if not mixed else ():
        for name, ground in _ground(record, varying).items():
            if ground != _ground(records[0], varying)[name]:
                raise ValueError(
                    f"the records in {folder} differ in {name}: {paths[0].name} and {path.name}"
                )
    return records


def _ground(record: Record, varying: Sequence[str]) -> dict[str, Any]:
    kept = {name: value for name, value in record.parameters.items() if name not in varying}
    return {
        "data": (record.dataset, record.data_checksum),
        "model": (record.model, record.model_checksum),
        "profile": record.profile,
        "parameters": kept,
        "versions": record.versions,
        "code": record.code,
    }


def pack(correct: Tensor) -> str:
    """(examples,) bool as text: eight examples a byte, in base 64."""
    return base64.b64encode(np.packbits(correct.numpy()).tobytes()).decode()


def code_digest() -> str:
    """sha256 over the library's own files: which code made a record, committed or not."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def provenance(run: Run, splits: TaskSplits | None = None) -> str:
    """The line that says what a chapter's numbers were made from.

    Args:
        run: the chapter's parameters.
        splits: its data, if it has any.
    """
    parts = []
    if splits is not None:
        name = "generated phrases (synthetic)" if run.dataset == "embedded" else run.dataset
        parts.append(f"Data: {name}, sha256 {data_checksum(splits)[:12]}")
    checksum = checkpoint_checksum(run.profile.model)[:12]
    parts.append(f"Model: {run.profile.model}, sha256 {checksum}")
    parts.append(f"Profile: {run.profile.name}, seed {run.seed}")
    device = "GPU" if torch.cuda.is_available() else "CPU"
    packages = ", ".join(f"{name} {versions()[name]}" for name in PACKAGES[:3])
    parts.append(f"Device: {device}; {packages}")
    return "\n".join(parts)


def versions() -> dict[str, str]:
    """Versions of :data:`PACKAGES`, without the mark of a local build."""
    return {name: version(name).partition("+")[0] for name in PACKAGES}


def device_name() -> str:
    """The GPU's name, or the processor's kind and how many threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def git_commit() -> str | None:
    """The checked-out commit, "-dirty" if tracked files differ from it; None outside a clone."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
