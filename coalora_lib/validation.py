"""What is wrong with a value or a file's content, said on one line."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from textwrap import shorten
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line is to start without it
    from pydantic import ValidationError

#: Characters of a value or a field's path that are shown.
SHOWN = 60
#: Characters that are shown of what is not known, and of what is allowed instead.
UNKNOWN, LISTED = 100, 300
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
    """Refuse a value that is not a number in a range, both ends included.

    Raises:
        TypeError: it is not a number, or has a fraction where ``whole``.
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


def not_known(what: str, allowed: Iterable[object]) -> str:
    """``what`` "is not known", the nearest of what is allowed, and the first of it.

    Near is meant of its last word in quotes.
    """
    names, what = [str(each) for each in allowed], flat(what)
    what = what if len(what) <= UNKNOWN else f"{what[:UNKNOWN]}..."
    near = nearest([what, *re.findall("'([^']*)'", what)][-1], names)
    meant = ";" if near is None else f"; did you mean {near}?"
    listed = shorten(", ".join(names), LISTED, placeholder=f" ... ({len(names)} in all)")
    return f"{what} is not known{meant} allowed: {listed}"


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """The nearest of what is allowed as `` (did you mean 'x'?)``, nothing if none is near."""
    near = nearest(str(name), allowed)
    return "" if near is None else f" (did you mean {near!r}?)"


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The name most like it, None if none is much like it."""
    return next(iter(get_close_matches(name, list(allowed), 1)), None)
