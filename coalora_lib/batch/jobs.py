"""What a batch is made of: runs of methods, which give records, and chapters, which give notebooks.

A job names its result, makes it, and checks whether a file is that result. It is sent to a worker
and gives bytes back, so that the two need no disk in common.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from coalora_lib.experiments import Run, Setup
    from coalora_lib.records import Job

#: Of a notebook's metadata: what it was made from.
STAMP = "coalora_batch"
_EXECUTED = "executed.ipynb"
#: Characters of a name made from parameters; a file's name may have 255 bytes.
_LONGEST = 120


class BatchJob(Protocol):
    """One job of a batch.

    Attributes:
        name: words joined by dots, dashes or underscores; depends on the job alone.
        file: of the result, in the results' folder.
        dataset: by name, if the job reads one that every worker must have alike.
        kept: of the files that :meth:`run` writes into its folder, the one that is kept if it
            fails.
    """

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def dataset(self) -> str | None: ...
    @property
    def kept(self) -> str | None: ...

    def run(self, scratch: Path) -> bytes:
        """Make the result; the folder is for checkpoints, with which a killed job continues."""
        ...

    def check(self, content: bytes) -> None:
        """Raise a ValueError that says in which field a file is not this job's result."""
        ...


@dataclass(frozen=True)
class MethodRun:
    """A run of a method; its result is a record."""

    job: Job
    run_of: Run
    kept = None

    @property
    def name(self) -> str:
        """The record's name."""
        return self.file.removesuffix(".json")

    @property
    def file(self) -> str:
        """As :meth:`~coalora_lib.records.Job.file_name`."""
        return self.job.file_name(self.run_of.dataset, self.run_of.profile.name)

    @property
    def dataset(self) -> str:
        """The run's."""
        return self.run_of.dataset

    def run(self, scratch: Path) -> bytes:
        """Train, from a checkpoint if there is one, and evaluate."""
        import torch

        from coalora_lib.experiments.runner import make_record
        from coalora_lib.records import record_bytes

        try:
            setup = _prepared(replace(self.run_of, seed=self.job.seed))
            return record_bytes(make_record(setup, self.job, scratch))
        finally:  # to the processes beside this one
            gc.collect()
            torch.cuda.empty_cache()

    def check(self, content: bytes) -> None:
        """A record of the same protocol, job, data, model and parameters."""
        from coalora_lib.experiments.runner import identity_of
        from coalora_lib.records import record_from

        found, run = record_from(content), replace(self.run_of, seed=self.job.seed)
        data, model = checksum_of(run.dataset), _model_checksum(run.profile.model)
        for field, ours in identity_of(self.job, run, data, model).items():
            there = getattr(found, field)
            if field == "job":
                there, ours = asdict(there), asdict(ours)
            if there != ours:
                raise ValueError(_difference(field, there, ours))


@dataclass(frozen=True)
class ChapterRun:
    """A chapter with parameters; its result is the executed notebook.

    Attributes:
        root: the project's folder; on a machine without it, a worker's working folder is taken.
        source: digest of the chapter's cells.
        data: checksum of the data set, None if the chapter reads none or generates it.
    """

    name: str
    root: Path
    chapter: Path
    parameters: tuple[tuple[str, Any], ...]
    source: str
    dataset: str | None
    data: str | None
    kept = _EXECUTED

    @property
    def file(self) -> str:
        """The notebook's name."""
        return f"{self.name}.ipynb"

    def run(self, scratch: Path) -> bytes:
        """Execute it in the project's folder."""
        import nbformat

        from coalora_lib.book.execution import run_chapter

        output = scratch / _EXECUTED
        run_chapter(self._root() / self.chapter, output, dict(self.parameters), bar=False)
        notebook = nbformat.read(output, as_version=4)
        notebook.metadata[STAMP] = self._stamp()
        return (nbformat.writes(notebook) + "\n").encode()

    def check(self, content: bytes) -> None:
        """A notebook executed to its end, from the same cells with the same parameters and data."""
        import nbformat

        try:
            notebook = nbformat.reads(content.decode(), as_version=4)
            nbformat.validate(notebook)
        except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
            raise ValueError(f"it is not a notebook: {str(error).partition(chr(10))[0]}") from None
        stamp = notebook.metadata.get(STAMP)
        if not isinstance(stamp, Mapping):
            raise ValueError(f"its metadata have no {STAMP}: it was not made by a batch")
        for field, ours in self._stamp().items():
            if stamp.get(field) != ours:
                raise ValueError(_difference(field, stamp.get(field), ours))
        for number, cell in enumerate(notebook.cells, 1):
            status = cell.metadata.get("papermill", {}).get("status")
            if cell.cell_type == "code" and status != "completed":
                raise ValueError(f"it was not executed to its end: cell {number} is {status}")

    def _stamp(self) -> dict[str, Any]:
        return {"source": self.source, "parameters": dict(self.parameters), "data": self.data}

    def _root(self) -> Path:
        """Where this machine has the chapter as it was when the batch began."""
        for root in (self.root, Path.cwd()):
            if (root / self.chapter).is_file() and source_of(root / self.chapter) == self.source:
                return root
        raise RuntimeError(
            f"{self.chapter} is not in {self.root} here, nor in {Path.cwd()}, or is another "
            "version there; start the worker in the project's folder"
        )


def chapter_run(
    root: Path, chapter: Path, parameters: Mapping[str, Any], name: str | None = None
) -> ChapterRun:
    """A chapter with parameters, by default named after both."""
    given = tuple(sorted(parameters.items()))
    dataset = parameters.get("dataset")
    data = None if dataset in (None, "embedded") else checksum_of(dataset)
    source = source_of(root / chapter)
    name = name or name_of(chapter.stem, parameters)
    return ChapterRun(name, root.resolve(), chapter, given, source, dataset if data else None, data)


def name_of(stem: str, parameters: Mapping[str, Any]) -> str:
    """Stem and parameters as one safe name; a digest replaces what a name cannot have."""
    full = "-".join([stem, *(f"{key}-{parameters[key]}" for key in sorted(parameters))])
    safe = re.sub(r"[^A-Za-z0-9]*[^A-Za-z0-9._-][^A-Za-z0-9]*|[._-]{2,}", "-", full).strip("._-")
    if safe == full and len(safe) <= _LONGEST:
        return safe
    digest = hashlib.sha256(json.dumps([stem, sorted(parameters.items())]).encode()).hexdigest()
    return f"{safe[:_LONGEST].strip('._-')}-{digest[:12]}"


def source_of(notebook: Path) -> str:
    """Digest of a chapter's cells, without their outputs."""
    from coalora_lib.book.pairs import digest, read_notebook

    return digest(read_notebook(notebook))


@lru_cache(maxsize=8)
def checksum_of(dataset: str) -> str:
    """Checksum of a data set as this machine reads it."""
    from coalora_lib.tasks import data_checksum, load_task

    return data_checksum(load_task(dataset))


@lru_cache(maxsize=8)  # a batch asks for each record that is there
def _model_checksum(name: str) -> str:
    from coalora_lib.tasks import checkpoint_checksum

    return checkpoint_checksum(name)


@lru_cache(maxsize=1)  # jobs come seed by seed
def _prepared(run: Run) -> Setup:
    from coalora_lib.experiments import prepare

    return prepare(run)


def _difference(field: str, there: Any, ours: Any) -> str:
    """Which part of a field differs, and how."""
    if isinstance(there, Mapping) and isinstance(ours, Mapping):
        for key in sorted(there.keys() | ours.keys()):
            if there.get(key) != ours.get(key):
                return _difference(f"{field}.{key}", there.get(key), ours.get(key))
    return f"{field} is {_short(there)} there, {_short(ours)} is wanted"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
