"""What is not known, named with what may have been meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from textwrap import shorten

from coalora_lib.validation import flat

#: Characters of what is not known that are shown.
LONGEST = 100
#: Characters of what is allowed that are shown.
MOST_LISTED = 300


def not_known(what: str, allowed: Iterable[object]) -> str:
    """``what`` "is not known", the nearest of what is allowed, and the first of it.

    Near is meant of its last word in quotes.
    """
    names, what = [str(each) for each in allowed], flat(what)
    what = what if len(what) <= LONGEST else f"{what[:LONGEST]}..."
    near = get_close_matches([what, *re.findall("'([^']*)'", what)][-1], names, n=1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    listed = shorten(", ".join(names), MOST_LISTED, placeholder=f" ... ({len(names)} in all)")
    return f"{what} is not known{meant} allowed: {listed}"
