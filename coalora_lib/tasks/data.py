"""Classification data: generated, from a folder, or from the hub, all in one form."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import datasets
from datasets import Dataset

from coalora_lib.tasks.embedded import review_phrases


class HubTask(NamedTuple):
    """Where the hub keeps a task, and what its columns are called there."""

    path: str
    name: str | None
    columns: tuple[str, ...]
    validation: str
    labels: int


#: The tasks of the paper's table 2. A pair of texts keeps its second one in the column "second".
TASKS: dict[str, HubTask] = {
    "sst2": HubTask("stanfordnlp/sst2", None, ("sentence",), "validation", 2),
    "qnli": HubTask("nyu-mll/glue", "qnli", ("question", "sentence"), "validation", 2),
    "mnli": HubTask("nyu-mll/glue", "mnli", ("premise", "hypothesis"), "validation_matched", 3),
    "qqp": HubTask("nyu-mll/glue", "qqp", ("question1", "question2"), "validation", 2),
}
SOURCES = ("embedded", "directory", "hub")
DIRECTORY_VARIABLE = "COALORA_DATA_DIR"
EMBEDDED_SIZES = {"train": 1088, "validation": 256}


class TaskSplits(NamedTuple):
    """A task's two splits, each a ``datasets.Dataset`` with the columns sentence and label."""

    train: Dataset
    validation: Dataset


def load_task(name: str = "embedded", source: str | None = None, seed: int = 0) -> TaskSplits:
    """Load a classification task.

    Args:
        name: "embedded", or one of :data:`TASKS`.
        source: "embedded" generates synthetic review phrases; "directory" reads GLUE's train.tsv
            and dev.tsv under ``$COALORA_DATA_DIR/<name>/``; "hub" downloads through ``datasets``.
            By default: embedded for that name, the directory if the variable is set, else the hub.
        seed: of the generated phrases; the other sources do not use it.

    Raises:
        ValueError: an unknown name or source, or a malformed file (file and line are named).
        FileNotFoundError: the directory or one of its files is missing.
        ConnectionError: the hub cannot be reached.
    """
    if source is None:
        on_disk = "directory" if os.environ.get(DIRECTORY_VARIABLE) else "hub"
        source = "embedded" if name == "embedded" else on_disk
    if source not in SOURCES:
        raise ValueError(f"source {source!r} is not known; allowed: {', '.join(SOURCES)}")
    allowed = ["embedded", *TASKS] if source == "embedded" else list(TASKS)
    if name not in allowed:
        raise ValueError(
            f"task {name!r} is not known for source {source!r}; allowed: {', '.join(allowed)}"
        )
    if source == "embedded":
        return _generate(seed)
    return _from_directory(name) if source == "directory" else _from_hub(name)


def data_checksum(splits: TaskSplits) -> str:
    """sha256 over the texts and labels of both splits, in order: the same for every source."""
    digest = hashlib.sha256()
    for split in splits:
        for column in sorted(split.column_names):
            digest.update("\x1f".join(map(str, split[column])).encode())
            digest.update(b"\x1e")
    return digest.hexdigest()


def _generate(seed: int) -> TaskSplits:
    phrases = review_phrases(sum(EMBEDDED_SIZES.values()), seed)
    cut = EMBEDDED_SIZES["train"]
    return TaskSplits(
        *(_dataset(*zip(*part, strict=True)) for part in (phrases[:cut], phrases[cut:]))
    )


def _dataset(sentences, labels) -> Dataset:
    return Dataset.from_dict({"sentence": list(sentences), "label": list(labels)})


def _from_directory(name: str) -> TaskSplits:
    if len(TASKS[name].columns) > 1:
        single = ", ".join(task for task, spec in TASKS.items() if len(spec.columns) == 1)
        raise ValueError(f"task {name!r} has text pairs; a directory may hold: {single}")
    root = os.environ.get(DIRECTORY_VARIABLE)
    if not root:
        raise FileNotFoundError(
            f"source 'directory' reads ${DIRECTORY_VARIABLE}/{name}/, and ${DIRECTORY_VARIABLE} "
            "is not set"
        )
    folder = Path(root) / name
    return TaskSplits(
        *(read_tsv(folder / file, TASKS[name].labels) for file in ("train.tsv", "dev.tsv"))
    )


def read_tsv(path: Path, labels: int) -> Dataset:
    """Read GLUE's single-sentence format: a header line, then sentence, tab, label.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a bad header, row or label, or no rows; the message names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from None
    if lines[0].rstrip("\r").split("\t") != ["sentence", "label"]:
        raise ValueError(f"{path}, line 1: the header must be sentence<TAB>label, got {lines[0]!r}")
    allowed = {str(label): label for label in range(labels)}
    sentences, values = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        sentence, tab, label = line.rstrip("\r").rpartition("\t")
        if not tab or not sentence.strip() or "\t" in sentence:
            raise ValueError(f"{path}, line {number}: expected sentence<TAB>label, got {line!r}")
        if label not in allowed:
            raise ValueError(
                f"{path}, line {number}: label {label!r} is not one of {', '.join(allowed)}"
            )
        sentences.append(sentence.strip())
        values.append(allowed[label])
    if not sentences:
        raise ValueError(f"{path}, line 2: the file has a header and no rows")
    return _dataset(sentences, values)


def _from_hub(name: str) -> TaskSplits:
    spec = TASKS[name]
    try:
        splits = datasets.load_dataset(spec.path, spec.name)
    except (ConnectionError, FileNotFoundError) as error:
        raise ConnectionError(
            f"task {name!r} was not found on the hub ({spec.path}): {error}. Without a connection, "
            f"set ${DIRECTORY_VARIABLE} to a folder that holds {name}/train.tsv and {name}/dev.tsv"
        ) from error
    return TaskSplits(
        to_columns(splits["train"], spec.columns), to_columns(splits[spec.validation], spec.columns)
    )


def to_columns(split: Dataset, columns: tuple[str, ...]) -> Dataset:
    """Rename a hub split's text columns to sentence (and second), and keep those and label."""
    renamed = dict(zip(columns, ("sentence", "second"), strict=False))
    kept = split.select_columns([*columns, "label"])
    # In two steps, since QNLI's second text is itself called "sentence".
    return kept.rename_columns({old: f"new_{new}" for old, new in renamed.items()}).rename_columns(
        {f"new_{new}": new for new in renamed.values()}
    )
