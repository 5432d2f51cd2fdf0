"""What is wrong with a value or a file's content, said on one line."""

from __future__ import annotations

import reprlib
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line is to start without it
    from pydantic import ValidationError

#: Characters of a value or a field's path that are shown.
SHOWN = 60
#: Never writes out all of a value: an alias in YAML makes one of any length.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 2 * SHOWN


def describe(error: ValidationError) -> str:
    """The first of pydantic's errors on one line: the field, what is wrong, the value."""
    errors = error.errors()
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"]) or "the file"
    value = flat(_SHORT.repr(first["input"]))
    value = f"{value[:SHOWN]}..." if len(value) > SHOWN else value
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{flat(field)[: 2 * SHOWN]}: {flat(first['msg'])}, got {value}{more}"


def flat(text: object) -> str:
    """Text on one line, as any terminal shows it.

    Line breaks and the blanks around them become one blank; a control character, or half a
    surrogate pair, becomes its escape.
    """
    line = " ".join(str(text).split())
    if line.isprintable():
        return line
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in line
    )


def check_number(
    name: str, value: Any, least: float, most: float = float("inf"), whole: bool = False
) -> None:
    """Refuse what is no number in a range, both ends included.

    Raises:
        TypeError: it is no number, or none without a fraction where ``whole``.
        ValueError: it is NaN or out of range.
    """
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not fits:
        kind = "a whole number" if whole else "a number"
        raise TypeError(f"{name}={value!r:.{SHOWN}} must be {kind}")
    if not value >= least:
        raise ValueError(f"{name}={value!r:.{SHOWN}} must be at least {least}")
    if not value <= most:
        raise ValueError(f"{name}={value!r:.{SHOWN}} must be at most {most}")
