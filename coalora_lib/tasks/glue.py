"""GLUE's folders: tab-separated files without quoting, in which a quote is part of a text."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from coalora_lib.tasks.lines import read_lines, split_lines
from coalora_lib.tasks.rows import position
from coalora_lib.validation import flat

#: Left out of a folder's name before it is compared.
HYPHENS = str.maketrans("", "", "-_")


class Layout(NamedTuple):
    """How GLUE keeps a task.

    Attributes:
        folder: its name in GLUE's own spelling.
        texts: one column, or two of a pair.
        label: the column.
        classes: what stands there, in the order of the hub's class numbers.
        validation: the file; the other is train.tsv.
        cut_short: rows with fewer fields than the header are left out, as GLUE's readers do: a
            line feed inside a question has cut them.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    validation: str = "dev.tsv"
    cut_short: bool = False


LAYOUTS = {
    "sst2": Layout("SST-2", ("sentence",), "label", ("0", "1")),
    "qnli": Layout("QNLI", ("question", "sentence"), "label", ("entailment", "not_entailment")),
    "mnli": Layout(
        "MNLI",
        ("sentence1", "sentence2"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        "dev_matched.tsv",
    ),
    "qqp": Layout("QQP", ("question1", "question2"), "is_duplicate", ("0", "1"), cut_short=True),
}


def find_folder(root: Path, name: str) -> Path:
    """A task's folder: the name or GLUE's spelling of it, in any case, with hyphens or without.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several, and none is called exactly ``name``.
    """
    root = root.expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    folders = sorted(each for each in root.iterdir() if each.is_dir())
    found = [each for each in folders if each.name.lower().translate(HYPHENS) == name]
    exact = [each for each in found if each.name == name]
    if len(exact or found) > 1:
        raise ValueError(f"{root}: {', '.join(each.name for each in found)}: which is {name!r}?")
    if not found:
        there = ", ".join(each.name for each in folders) or "no folders"
        raise FileNotFoundError(f"{root / name}: no such folder; there are: {there}")
    return (exact or found)[0]


def read_glue(path: Path, layout: Layout) -> Dataset:
    """One file of GLUE's: a header, then a row a line; blanks around a text are taken off.

    Returns:
        Columns sentence, second for pairs, and label, the class's number. Of a pair, one text may
        be empty: QQP has such rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a malformed header, row or label, or no rows; the message names file and line.

    Warns:
        UserWarning: rows cut short are left out; the lines are named.
    """
    rows = split_lines(list(read_lines(path)), "\t")
    header = next(rows, (1, []))[1]
    columns = (*layout.texts, layout.label)
    try:
        chosen = [position(header, name, str(path)) for name in columns]
    except ValueError:
        raise ValueError(
            f"{path}, line 1: the header must be {'<TAB>'.join(columns)}, or have these among "
            f"others; got {header!r:.200}"
        ) from None
    kept, short = [], []
    for line, fields in rows:
        if layout.cut_short and len(fields) < len(header):
            short.append(line)
            continue
        kept.append(_row(fields, header, chosen, f"{path}, line {line}", layout.classes))
    if short:
        shown = ", ".join(map(str, short[:10])) + (", ..." if len(short) > 10 else "")
        warnings.warn(f"{path}: incomplete rows are left out, lines {shown}", stacklevel=2)
    if not kept:
        raise ValueError(f"{path}, line 2: the file has a header and no rows")
    names = (*("sentence", "second")[: len(layout.texts)], "label")
    return Dataset.from_dict(dict(zip(names, map(list, zip(*kept, strict=True)), strict=True)))


def _row(
    fields: list[str], header: list[str], chosen: list[int], place: str, classes: tuple[str, ...]
) -> list:
    """A row's texts and the number of its class."""
    if len(fields) == len(header):
        *texts, label = (fields[i].strip() for i in chosen)
    if len(fields) != len(header) or not any(texts):
        there, got = flat("<TAB>".join(header)), "<TAB>".join(fields)
        raise ValueError(f"{place}: expected {there:.200}, got {got!r:.200}")
    if label not in classes:
        raise ValueError(f"{place}: label {label!r:.80} is not one of {', '.join(classes)}")
    return [*texts, classes.index(label)]
