"""What is not known, named with what may have been meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


def not_known(what: str, allowed: Iterable[object]) -> str:
    """``what`` "is not known", the nearest of what is allowed, and all of it.

    Near is meant of its last word in quotes.
    """
    names = [str(each) for each in allowed]
    near = get_close_matches([what, *re.findall("'([^']*)'", what)][-1], names, n=1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    return f"{what} is not known{meant} allowed: {', '.join(names)}"
