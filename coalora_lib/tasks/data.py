"""Data of tasks: generated, from a folder, or from the hub, all in one form."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import datasets
from datasets import Dataset

from coalora_lib.tasks.embedded import review_phrases
from coalora_lib.tasks.glue import LAYOUTS, find_folder, read_glue
from coalora_lib.tasks.stsb import read_stsb
from coalora_lib.tasks.table import from_table


class HubTask(NamedTuple):
    """Where the hub keeps a task, its columns and files there.

    Attributes:
        labels: number of classes; None where texts have no labels.
        kinds: of task that it is for, see :mod:`coalora_lib.kinds`.
    """

    path: str
    name: str | None
    columns: tuple[str, ...]
    validation: str
    labels: int | None
    files: dict[str, str] | None = None
    kinds: tuple[str, ...] = ("single-label",)


_OF_DECODERS, _OF_EMBEDDINGS = ("causal-lm", "next-token"), ("embedding",)
_C4_FILES = {
    "train": "en/c4-train.00000-of-01024.json.gz",
    "validation": "en/c4-validation.00000-of-00008.json.gz",
}
#: The tasks of the paper's experiments. Of C4 the first of the English files.
TASKS: dict[str, HubTask] = {
    "sst2": HubTask("stanfordnlp/sst2", None, ("sentence",), "validation", 2),
    "qnli": HubTask("nyu-mll/glue", "qnli", ("question", "sentence"), "validation", 2),
    "mnli": HubTask("nyu-mll/glue", "mnli", ("premise", "hypothesis"), "validation_matched", 3),
    "qqp": HubTask("nyu-mll/glue", "qqp", ("question1", "question2"), "validation", 2),
    "c4": HubTask("allenai/c4", None, ("text",), "validation", None, _C4_FILES, _OF_DECODERS),
}
#: For tuning: the validation split is held out of another task's train, see :func:`hold_out`.
TUNING = {"sst2-tuning": "sst2"}
TASKS |= {name: TASKS[whole] for name, whole in TUNING.items()}
#: STS-B's folder, and its files to train on and to validate on.
STSB, STSB_FILES = "stsb", ("sts-train.csv", "sts-dev.csv")
#: Texts without labels, to be embedded: those of another task's train alone, see :func:`apart`.
TEXTS = {"sst2-texts": "sst2", "stsb-texts": STSB}
_PAIR = ("sentence1", "sentence2")
TASKS |= {
    "sst2-texts": TASKS["sst2"]._replace(labels=None, kinds=_OF_EMBEDDINGS),
    "stsb-texts": HubTask("nyu-mll/glue", STSB, _PAIR, "validation", None, kinds=_OF_EMBEDDINGS),
}
#: Texts held out of a train split, and the words they have at least.
HELD_OUT, HELD_OUT_WORDS = 1024, 8
SOURCES = ("embedded", "directory", "hub")
DIRECTORY_VARIABLE = "COALORA_DATA_DIR"
#: Generated phrases.
TRAIN, VALIDATION = 1088, 256


class TaskSplits(NamedTuple):
    """A task's splits, with the columns sentence, label if there are any, and second of pairs."""

    train: Dataset
    validation: Dataset


def load_task(name: str = "embedded", source: str | None = None, seed: int = 0) -> TaskSplits:
    """Load a task.

    Args:
        name: "embedded", or one of :data:`TASKS`, those of :data:`TUNING` and :data:`TEXTS` among
            them.
        source: "embedded" generates synthetic review phrases; "directory" reads GLUE's files under
            ``$COALORA_DATA_DIR/<name>/`` (or GLUE's spelling, SST-2): train.tsv and dev.tsv,
            MNLI's dev_matched.tsv, or, where texts have no label, train.jsonl and
            validation.jsonl with a field "text"; of STS-B sts-train.csv and sts-dev.csv; "hub"
            downloads through ``datasets``. By default: embedded for that name, the directory if
            the variable is set, else the hub.
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
    if name in TUNING:
        return hold_out(load_task(TUNING[name], source, seed).train)
    if source == "embedded":
        splits = _generate(seed)
    else:
        splits = _from_directory(name) if source == "directory" else _from_hub(name)
    return apart(splits.train) if name in TEXTS else splits


def kinds_of(name: str) -> tuple[str, ...]:
    """The kinds of task that a data set of :func:`load_task` is for."""
    return ("single-label", "embedding") if name == "embedded" else TASKS[name].kinds


def similarity_pairs() -> Dataset | None:
    """STS-B's pairs of sentences with their scores, see :func:`~coalora_lib.tasks.stsb.read_stsb`.

    They are those of the benchmark's dev part. None where ``$COALORA_DATA_DIR`` is not set or has
    no folder of that name.

    Raises:
        ValueError, FileNotFoundError: the folder is there, and the file malformed or missing.
    """
    root = os.environ.get(DIRECTORY_VARIABLE)
    if not root:
        return None
    try:
        folder = find_folder(Path(root), STSB)
    except FileNotFoundError:
        return None
    return read_stsb(folder / STSB_FILES[1])


def data_checksum(splits: TaskSplits) -> str:
    """sha256 over the texts and labels of both splits, in order: the same for every source."""
    digest = hashlib.sha256()
    for split in splits:
        for column in sorted(split.column_names):
            digest.update("\x1f".join(map(str, split[column])).encode())
            digest.update(b"\x1e")
    return digest.hexdigest()


def hold_out(train: Dataset, count: int = HELD_OUT) -> TaskSplits:
    """``count`` texts of :data:`HELD_OUT_WORDS` words or more held out, or all if there are fewer.

    SST-2's training split holds sentences and their phrases. Phrases held out at random have
    relatives that are trained on, and what memorises looks good on them. So the texts held out are
    contained in no other text, and the texts contained in them are not trained on.
    """
    words = [tuple(text.split()) for text in train["sentence"]]
    texts = set(words)
    inside = {span for text in texts for span in _spans(text) if span in texts and span != text}
    whole = [row for row, text in enumerate(words) if text not in inside]
    whole = [row for row in whole if len(words[row]) >= HELD_OUT_WORDS]
    chosen = sorted(random.Random(0).sample(whole, min(count, len(whole))))
    held = {span for row in chosen for span in _spans(words[row])}
    kept = [row for row, text in enumerate(words) if text not in held]
    return TaskSplits(train.select(kept), train.select(chosen))


def apart(train: Dataset) -> TaskSplits:
    """Texts without labels, each once, some of them held out as :func:`hold_out` does.

    Texts of pairs are taken one by one. A text that is paired with a held-out text usually means
    the same, so it is not trained on.
    """
    columns = [name for name in ("sentence", "second") if name in train.column_names]
    groups = list(zip(*(train[name] for name in columns), strict=True))
    texts = dict.fromkeys(text for group in groups for text in group)
    kept, held = hold_out(Dataset.from_dict({"sentence": list(texts)}))
    away = set(held["sentence"])
    related = {text for group in groups if away.intersection(group) for text in group}
    rows = [row for row, text in enumerate(kept["sentence"]) if text not in related]
    return TaskSplits(kept.select(rows), held)


def _spans(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every run of words, the whole text too."""
    for start, end in combinations(range(len(words) + 1), 2):
        yield words[start:end]


def _generate(seed: int) -> TaskSplits:
    whole = _dataset(review_phrases(TRAIN + VALIDATION, seed))
    return TaskSplits(whole.select(range(TRAIN)), whole.select(range(TRAIN, len(whole))))


def _dataset(rows: list[tuple[str, int]]) -> Dataset:
    sentences, labels = zip(*rows, strict=True)
    return Dataset.from_dict({"sentence": list(sentences), "label": list(labels)})


def _files_of(name: str) -> tuple[str, tuple[str, str], Callable[[Path], Dataset]]:
    """A task's folder, its files to train on and to validate on, and what reads one."""
    folder = TEXTS.get(name, name)
    if folder == STSB:
        return folder, STSB_FILES, read_stsb
    if folder in LAYOUTS:
        layout = LAYOUTS[folder]
        return folder, ("train.tsv", layout.validation), partial(read_glue, layout=layout)
    return folder, ("train.jsonl", "validation.jsonl"), from_table


def _from_directory(name: str) -> TaskSplits:
    wanted, files, read = _files_of(name)
    root = os.environ.get(DIRECTORY_VARIABLE)
    if not root:
        raise FileNotFoundError(
            f"source 'directory' reads ${DIRECTORY_VARIABLE}/{wanted}/, and ${DIRECTORY_VARIABLE} "
            "is not set"
        )
    folder = find_folder(Path(root), wanted)
    return TaskSplits(*(read(folder / file) for file in files))


def _from_hub(name: str) -> TaskSplits:
    spec = TASKS[name]
    try:
        splits = datasets.load_dataset(spec.path, spec.name, data_files=spec.files)
    except (ConnectionError, FileNotFoundError) as error:
        folder, files, _ = _files_of(name)
        raise ConnectionError(
            f"task {name!r} was not found on the hub ({spec.path}): {error}. Without a connection, "
            f"set ${DIRECTORY_VARIABLE} to a folder whose subfolder {folder} holds "
            f"{' and '.join(files)}"
        ) from error
    return TaskSplits(to_columns(splits["train"], spec), to_columns(splits[spec.validation], spec))


def to_columns(split: Dataset, task: HubTask) -> Dataset:
    """Rename a hub split's text columns to sentence (and second); keep those, and a label."""
    renamed = dict(zip(task.columns, ("sentence", "second"), strict=False))
    kept = split.select_columns([*task.columns, *(["label"] if task.labels else [])])
    # In two steps, since QNLI's second text is itself called "sentence".
    return kept.rename_columns({old: f"new_{new}" for old, new in renamed.items()}).rename_columns(
        {f"new_{new}": new for new in renamed.values()}
    )
