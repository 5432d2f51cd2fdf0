"""What the labels of a table are: a class of each row, several classes, or a score."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import chain
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
from datasets import ClassLabel, List, Value

from coalora_lib.tasks.rows import SURROGATE, Rows
from coalora_lib.validation import flat

NUMBER = re.compile(r"[+-]?(\d{1,300}(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
#: What people and programs write for a number that is missing. Among numbers it is no class.
NO_NUMBER = {"na", "n/a", "#n/a", "<na>", "nan", "null", "none", "-", "?", "inf", "-inf"}
#: Names of classes in a message.
SHOWN = 20


def read_labels(rows: Rows, name: Any, classes: Any = None) -> tuple[list, Any]:
    """A column's labels as numbers, and the feature of ``datasets`` that describes them.

    Args:
        rows: of the table.
        name: of the column.
        classes: as :func:`coalora_lib.tasks.from_table` takes them.

    Returns:
        Numbers of classes and a ``ClassLabel``, lists of them and a ``List`` of ``ClassLabel``, or
        scores and ``Value("float32")``.

    Raises:
        ValueError: a label is missing, of another kind than others, or not among the classes.
        TypeError: classes are not names or a feature.
    """
    known, kind = _known(classes, rows.classes.get(name))
    labels = [_plain(cell) for cell in rows.columns[name]]
    rows.refuse(_where(_missing, labels), lambda i: f"{name} is empty")
    lists = kind is List or (kind is None and any(isinstance(label, list) for label in labels))
    allowed = "a list of classes" if lists else "text or a number"
    rows.refuse(
        _where(lambda label: not _is_label(label, lists), labels),
        lambda i: f"{name} is {labels[i]!r:.80}, not {allowed}",
    )
    if lists:
        numbers, names = _numbered(rows, name, *_from_vectors(labels, known))
        return numbers, List(ClassLabel(names=names))
    cells = [[label] for label in labels]
    if kind is Value or (known is None and not _whole(_values(rows, name, cells))):
        return _scores(rows, name, labels), Value("float32")
    numbers, names = _numbered(rows, name, cells, known)
    return [number for (number,) in numbers], ClassLabel(names=names)


def _known(classes: Any, own: list[str] | None) -> tuple[list[str] | None, Any]:
    """The names of the classes and the kind of label, as far as they are given."""
    if classes is None:
        return own, None
    if isinstance(classes, Value) and classes.dtype.startswith("float"):
        return None, Value
    if isinstance(classes, ClassLabel):
        return list(classes.names), ClassLabel
    if isinstance(classes, List) and isinstance(classes.feature, ClassLabel):
        return list(classes.feature.names), List
    if isinstance(classes, str | Value | List) or not isinstance(classes, Iterable):
        raise TypeError(
            f"classes={classes!r:.200} must be names in order, or the feature of another table's "
            "labels"
        )
    names = [str(each) for each in classes]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"classes={names} must be different names, at least one")
    return names, None


def _plain(cell: Any) -> Any:
    """A cell of an array or a tensor as Python's; text without blanks around it."""
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    if isinstance(cell, list | tuple | set | frozenset):
        return [_plain(each) for each in cell]
    return cell.strip() if isinstance(cell, str) else cell


def _missing(label: Any) -> bool:
    if isinstance(label, list):
        return any(map(_missing, label))
    return pd.isna(label) is True or label == ""


def _is_label(label: Any, lists: bool) -> bool:
    if lists:
        return isinstance(label, list) and all(_is_label(each, False) for each in label)
    return isinstance(label, str | Number) and not SURROGATE.search(str(label))


def _where(test: Callable[[Any], bool], values: list) -> list[int]:
    return [i for i, value in enumerate(values) if test(value)]


@lru_cache(typed=True)  # True is no 1 here
def _number(label: Any) -> float | None:
    text = str(label)
    return float(text) if NUMBER.fullmatch(text) else None


def _whole(values: list[float] | None) -> bool:
    return values is None or all(map(float.is_integer, values))


def _values(rows: Rows, name: Any, cells: list[list]) -> list[float] | None:
    """The numbers in all cells; None if there are names among them."""
    values = [[_number(label) for label in cell] for cell in cells]
    flat = list(chain.from_iterable(cells))
    numbers = [value for value in chain.from_iterable(values) if value is not None]
    if len(numbers) == len(flat):
        return numbers
    others = {str(label).lower() for label in flat if _number(label) is None}
    commas = all(NUMBER.fullmatch(str(label).replace(",", ".", 1)) for label in flat)
    if commas or (numbers and others <= NO_NUMBER):
        rows.refuse(
            _where(lambda cell: None in cell, values),
            lambda i: (
                f"{name} is {cells[i][values[i].index(None)]!r:.80}, no number that can be read"
            ),
        )
    return None


def _from_vectors(
    labels: list[list], known: list[str] | None
) -> tuple[list[list], list[str] | None]:
    """Vectors of a zero or one for each class as lists of classes; other lists as they are."""
    width = len(labels[0])
    vectors = width > 1 and all(
        len(label) == width and all(each in (0, 1) and not isinstance(each, str) for each in label)
        for label in labels
    )
    if not vectors or (known and len(known) != width):
        return labels, known
    known = known or [str(i) for i in range(width)]
    return [[n for n, each in zip(known, label, strict=True) if each] for label in labels], known


def _names(rows: Rows, name: Any, cells: list[list]) -> list[str]:
    """The classes that occur: by number if all are numbers, else by alphabet."""
    values = _values(rows, name, cells)
    if values == []:
        raise ValueError(f"{rows.source}: {name} has no class in any row")
    if values is None:
        return sorted({str(label) for label in chain.from_iterable(cells)})
    if not _whole(values):
        raise ValueError(f"{rows.source}: {name} has lists with numbers that are not whole")
    names = {_integer(label) for label in chain.from_iterable(cells)}
    spelled: dict[int, str] = {}
    for each in sorted(names, key=lambda each: (int(each), each)):
        if spelled.setdefault(int(each), each) != each:
            raise ValueError(
                f"{rows.source}: {name} has {spelled[int(each)]!r:.80} and {each!r:.80}, one "
                "number written in two ways"
            )
    return list(spelled.values())


@lru_cache(typed=True)
def _integer(label: Any) -> str:
    """A whole number without a fraction, 4.0 as 4; any other label as it is."""
    text, value = str(label), _number(label)
    if value is None or not value.is_integer() or text.lstrip("+-").isdigit():
        return text
    return str(int(value))


def _numbered(
    rows: Rows, name: Any, cells: list[list], known: list[str] | None
) -> tuple[list[list[int]], list[str]]:
    """The number of each class, and the names of all."""
    names = known or _names(rows, name, cells)
    index = {each: number for number, each in enumerate(names)}
    numbers = [
        [index.get(str(label), index.get(_integer(label), -1)) for label in cell] for cell in cells
    ]
    shown = f"{flat(', '.join(names[:SHOWN])):.300}" + (", ..." if len(names) > SHOWN else "")
    rows.refuse(
        _where(lambda cell: -1 in cell, numbers),
        lambda i: f"{name} is {cells[i][numbers[i].index(-1)]!r:.80}, not one of {shown}",
    )
    return numbers, names


def _scores(rows: Rows, name: Any, labels: list) -> list[float]:
    with np.errstate(over="ignore"):
        scores = [np.float32(np.nan if (x := _number(label)) is None else x) for label in labels]
    rows.refuse(
        _where(lambda score: not np.isfinite(score), scores),
        lambda i: f"{name} is {labels[i]!r:.80}, not a finite float32 number",
    )
    return [float(score) for score in scores]
