"""The nearest level of many values at once.

A value's code is the number of thresholds between levels that lie below it. `torch.bucketize`
counts them by bisection; :class:`LevelGrid` looks the count up. It cuts [-1, 1] into so many equal
cells that none holds two thresholds: the cell gives the count up to its own threshold, and one
comparison settles that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from coalora_lib.quantization.codebooks import thresholds

#: Where the search for a number of cells begins and ends. The look-up tables should stay in a
#: first-level cache.
FEWEST_CELLS, MOST_CELLS = 64, 1 << 14
#: Where in a cell the value -1 may lie, in sixteenths: moving all edges parts close thresholds
#: sooner than making all cells smaller.
SHIFTS = 16
#: How far, in cells, a value rounded to float32 may land on the wrong side of a cell's edge.
MARGIN = MOST_CELLS * 2.0**-22


@dataclass(frozen=True)
class LevelGrid:
    """Look-up tables for the codes of one set of thresholds.

    Attributes:
        cells: number of equal cells that an interval of length 2 is cut into.
        zero: where the value 0 lies, in cells.
        below: (cells + 2,) int64, thresholds below each cell.
        candidates: (thresholds + 1,) float32, the threshold that decides for a count so far.
    """

    cells: int
    zero: Tensor
    below: Tensor
    candidates: Tensor

    def codes(self, values: Tensor) -> Tensor:
        """How many thresholds are below each of float32 values: int64, as in bisection."""
        cells = torch.add(self.zero, values.clamp(-1, 1), alpha=self.cells / 2).long()
        codes = self.below.index_select(0, cells.flatten())
        decisive = self.candidates.index_select(0, codes)
        passed = (values.flatten() > decisive).long()  # adding booleans is slower
        return codes.add_(passed).view(values.shape)


def level_grid(limits: Tensor) -> LevelGrid:
    """The coarsest grid that keeps (m,) float32 thresholds in [-1, 1] apart, strictly ascending.

    Raises:
        ValueError: two thresholds are closer than the finest grid can part.
    """
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
