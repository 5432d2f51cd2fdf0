"""Code books: the levels that k-bit codes stand for, in [-1, 1].

A code book is a function from k to at most 2^k ascending levels, under its name in
:data:`CODE_BOOKS`. A value's code is the number of thresholds between levels that lie below it.
`torch.bucketize` counts them by bisection; :class:`LevelGrid` looks the count up. It cuts [-1, 1]
into so many equal cells that none holds two thresholds: the cell gives the count up to its own
threshold, and one comparison settles that one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

#: The outermost quantile of NF-k: the mean of 1 - 1/(2*15) and 1 - 1/(2*16), as for NF4 in QLoRA
#: (arXiv 2305.14314, appendix E); LQ-LoRA keeps it for every k.
OFFSET = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
#: Where the search for a number of cells begins and ends. The look-up tables should stay in a
#: first-level cache.
FEWEST_CELLS, MOST_CELLS = 64, 1 << 14
#: Where in a cell the value -1 may lie, in sixteenths: moving all edges parts close thresholds
#: sooner than making all cells smaller.
SHIFTS = 16
#: How far, in cells, a value rounded to float32 may land on the wrong side of a cell's edge.
MARGIN = MOST_CELLS * 2.0**-22


def normal_float(bits: int) -> Tensor:
    """The NF-k levels, (2^k,) float32, k from 2 to 8: quantiles of a normal distribution.

    sigma * Phi^-1(p) at p = linspace(1 - O, 1/2, h) without its last point, followed by
    linspace(1/2, O, h + 1), with h = 2^(k-1): both ends are exact, so is zero, and there is one
    more positive level than there are negative ones.
    """
    _check_bits("NormalFloat", bits)
    half = 2 ** (bits - 1)
    negative = torch.linspace(1 - OFFSET, 0.5, half, dtype=torch.float64)[:-1]
    positive = torch.linspace(0.5, OFFSET, half + 1, dtype=torch.float64)
    levels = torch.special.ndtri(torch.cat([negative, positive]))
    levels[half - 1] = 0.0  # Phi^-1(1/2) up to rounding
    return (levels / levels[-1]).float()


def symmetric_integer(bits: int) -> Tensor:
    """The levels i / (2^(k-1) - 1) of symmetric integers, k from 2 to 8: (2^k - 1,) float32.

    One code of the 2^k is left unused, so that a weight and its negative are kept equally well.
    """
    _check_bits("integer", bits)
    top = 2 ** (bits - 1) - 1
    return (torch.arange(-top, top + 1, dtype=torch.float64) / top).float()


def _check_bits(format_name: str, bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} has no {format_name} code book; allowed: 2 to 8")


#: By name.
CODE_BOOKS: dict[str, Callable[[int], Tensor]] = {"nf": normal_float, "int": symmetric_integer}


def code_book(name: str, bits: int) -> Tensor:
    """The ascending levels of a code book's k-bit codes; ValueError if there are none to use.

    Levels must ascend in [-1, 1], at most 2^k, with a zero, which padding and all-zero blocks need.
    """
    if name not in CODE_BOOKS:
        raise ValueError(f"code_book={name!r} is not known; allowed: {', '.join(CODE_BOOKS)}")
    levels = CODE_BOOKS[name](bits)
    usable = (levels.diff() > 0).all() and levels.abs().max() <= 1 and (levels == 0).any()
    if not usable or len(levels) > 2**bits:
        raise ValueError(
            f"the {bits}-bit code book {name!r} must be at most {2**bits} ascending levels "
            f"in [-1, 1], zero among them"
        )
    return levels


@cache
def code_levels(name: str, bits: int, device: torch.device | str = "cpu") -> Tensor:
    """What each of the 2^k codes stands for: (2^k,) float32, made once for each device.

    Codes that a code book leaves unused stand for its last level, so that every code can be read.
    """
    levels = code_book(name, bits)
    unused = levels[-1:].expand(2**bits - len(levels))
    return torch.cat([levels, unused]).to(device)


@cache
def thresholds(name: str, bits: int, device: torch.device | str = "cpu") -> Tensor:
    """The values half way between neighbouring levels: (levels - 1,) float32.

    A value's code is the number of thresholds below it, so that ties go to the lower level.
    """
    levels = code_book(name, bits)
    return ((levels[1:] + levels[:-1]) / 2).to(device)


@dataclass(frozen=True)
class LevelGrid:
    """Look-up tables for the codes of one set of thresholds."""

    cells: int  #: equal cells that an interval of length 2 is cut into
    zero: Tensor  #: where the value 0 lies, in cells
    below: Tensor  #: (cells + 2,) int64, thresholds below each cell
    candidates: Tensor  #: (thresholds + 1,) float32, the one that decides for a count so far

    def codes(self, values: Tensor) -> Tensor:
        """How many thresholds are below each of float32 values: int64, as in bisection."""
        cells = torch.add(self.zero, values.clamp(-1, 1), alpha=self.cells / 2).long()
        codes = self.below.index_select(0, cells.flatten())
        decisive = self.candidates.index_select(0, codes)
        passed = (values.flatten() > decisive).long()  # adding booleans is slower
        return codes.add_(passed).view(values.shape)


def level_grid(limits: Tensor) -> LevelGrid:
    """The coarsest grid that keeps (m,) float32 thresholds in [-1, 1] apart, strictly ascending."""
    ordered = limits.double().cpu()
    cells, shift = _separating(ordered)
    edges = (torch.arange(cells + 2, dtype=torch.float64) - shift) * (2 / cells) - 1
    # Early by the margin, so that a value rounded into the next cell is still compared.
    below = torch.bucketize(edges - MARGIN * 2 / cells, ordered)
    candidates = F.pad(limits, (0, 1), value=torch.inf)
    zero = torch.tensor(cells / 2 + shift, device=limits.device)
    return LevelGrid(cells, zero, below.to(limits.device), candidates)


def _separating(limits: Tensor) -> tuple[int, float]:
    """The fewest cells, and the shift, for which neighbouring thresholds lie in different cells."""
    shifts = torch.arange(SHIFTS, dtype=torch.float64)[:, None, None] / SHIFTS
    lower, upper = limits[:-1] + 1, limits[1:] + 1
    for counts in torch.arange(FEWEST_CELLS, MOST_CELLS + 1, dtype=torch.float64).split(128):
        close = upper - lower < (1 + 2 * MARGIN) * 2 / counts[0]  # the others are apart anyway
        scale = counts[:, None] / 2
        last, first = lower[close] * scale + shifts, upper[close] * scale + shifts
        works = ((last + MARGIN).floor() < (first - MARGIN).floor()).all(-1)  # (shifts, counts)
        if works.any():
            column = int(works.any(0).int().argmax())
            row = int(works[:, column].int().argmax())
            return int(counts[column]), row / SHIFTS
    raise ValueError(f"levels of a code book are closer than {2 / MOST_CELLS:g}")


@cache
def book_grid(code_book: str, bits: int, device: torch.device) -> LevelGrid:
    """The grid of a code book's k-bit codes, made once for each device."""
    return level_grid(thresholds(code_book, bits, device))
