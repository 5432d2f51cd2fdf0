"""Users' own texts: a table in a file or in memory as a data set of the library's form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, Features, Value

from coalora_lib.tasks.labels import read_labels
from coalora_lib.tasks.rows import SURROGATE, Rows, from_columns, from_records, read_rows

#: What messages call a table in memory.
IN_MEMORY = "the table"


def from_table(
    table: Any,
    text: str = "text",
    label: str | None = None,
    second: str | None = None,
    classes: Any = None,
    quotes: bool | None = None,
) -> Dataset:
    """A data set of one's own texts.

    The kind of the labels is read off them, and stands in the result's ``features``:

    - ``ClassLabel``: texts, whole numbers or booleans. A class is named by its text; numbers are
      in their order, other names in that of the alphabet, a pandas Categorical's in its own.
    - ``Value("float32")``: numbers, of which one or more are not whole (scores, for regression).
    - ``List(ClassLabel)``: lists of classes (several labels of a text). Lists of one length of 2 or
      more, all of zeros and ones, have a one for each class of the row: they become such lists.

    Args:
        table: the path of a file .csv, .tsv (both with a header), .jsonl, .ndjson, .json or
            .parquet, all but the last also compressed (.gz, .bz2, .xz); a pandas DataFrame; a
            ``datasets.Dataset``; a list of dictionaries; a dictionary of columns; a tuple of texts
            and their labels; a list of texts. ``~`` is the home folder. Text files are UTF-8,
            unless a byte-order mark names another encoding.
        text: the column with the texts.
        label: the column with the labels; none if left out (of a tuple, its second).
        second: the column with the second texts of pairs.
        classes: the names of the classes in their order; or ``features["label"]`` of another
            table, to read a test set as the training set was; or ``Value("float32")`` to read
            whole numbers as scores.
        quotes: of .csv and .tsv: True, quotes around a field are not part of it; False, they are
            characters like others, as in GLUE's files. By default True, but a .tsv that can be
            read either way is refused.

    Returns:
        As many rows as the table has, with the columns sentence (str), second (str) if asked for,
        and label if asked for. Texts are never changed; labels lose blanks around them. Lines of a
        .csv or .tsv in which nothing stands are no rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing (those that are there are named, and the nearest) or there
            twice; there are no rows; a row is malformed, its text blank or no text, its label
            missing, of another kind than the others or not among the classes. The message names
            file and line, for tables in memory the row, counted from 0.
        TypeError: the table is of none of these kinds.
    """
    if isinstance(table, tuple) and label is None:
        label = "label"
    wanted = list(dict.fromkeys(name for name in (text, second, label) if name is not None))
    rows = _read(table, wanted, text, quotes)
    columns, features = {"sentence": _texts(rows, text)}, {"sentence": Value("string")}
    if second is not None:
        columns["second"], features["second"] = _texts(rows, second), Value("string")
    if label is not None:
        columns["label"], features["label"] = read_labels(rows, label, classes)
    elif classes is not None:
        raise ValueError("classes= is given, and no column in label=")
    return Dataset.from_dict(columns, features=Features(features))


def _read(table: Any, wanted: list[str], text: str, quotes: bool | None) -> Rows:
    if isinstance(table, str | os.PathLike):
        return read_rows(Path(table).expanduser(), wanted, quotes)
    if isinstance(table, pd.DataFrame):
        return _of_frame(table, wanted)
    if isinstance(table, Dataset):
        plain = table.with_format(None)
        names = plain.column_names
        return from_columns(names, lambda i: plain[names[i]], wanted, IN_MEMORY, plain.features)
    if isinstance(table, tuple) and len(table) == 2:
        return from_columns([text, wanted[-1]], table.__getitem__, wanted, IN_MEMORY)
    if isinstance(table, list) and all(isinstance(each, str) for each in table):
        return from_columns([text], lambda i: table, wanted, IN_MEMORY)
    if isinstance(table, list) and all(isinstance(each, Mapping) for each in table):
        return from_records(enumerate(table), wanted, IN_MEMORY)
    if isinstance(table, Mapping):
        return from_columns(table, list(table.values()).__getitem__, wanted, IN_MEMORY)
    raise TypeError(
        f"a table of type {type(table).__name__} is not known; allowed: a path, a pandas "
        "DataFrame, a datasets.Dataset, a list of dictionaries or of texts, a dictionary of "
        "columns, a tuple (texts, labels)"
    )


def _of_frame(frame: pd.DataFrame, wanted: list[str]) -> Rows:
    rows = from_columns(frame.columns, lambda i: frame.iloc[:, i].tolist(), wanted, IN_MEMORY)
    for name in wanted:
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            rows.classes[name] = [str(each) for each in frame[name].cat.categories]
    return rows


def _texts(rows: Rows, name: str) -> list[str]:
    """A column's texts as they are.

    Raises:
        ValueError: a cell is no text, blank, or has half a surrogate pair in it.
    """
    faults = [_fault(cell) for cell in rows.columns[name]]
    rows.refuse([i for i, found in enumerate(faults) if found], lambda i: f"{name} is {faults[i]}")
    return [str(cell) for cell in rows.columns[name]]


def _fault(cell: Any) -> str | None:
    """What is wrong with a text."""
    if pd.isna(cell) is True or (isinstance(cell, str) and not cell.strip()):
        return "empty"
    if not isinstance(cell, str):
        return f"{cell!r:.80}, not text but {type(cell).__name__}"
    return "not Unicode (half a surrogate pair)" if SURROGATE.search(cell) else None
