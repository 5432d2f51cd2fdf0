"""Code books: the levels a k-bit code stands for, in [-1, 1]."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

#: The outermost quantile of NF-k: the mean of 1 - 1/(2*15) and 1 - 1/(2*16), as for NF4 in QLoRA
#: (arXiv 2305.14314, appendix E); LQ-LoRA keeps it for every k.
OFFSET = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))


@cache
def normal_float(bits: int) -> Tensor:
    """The NormalFloat levels: equal-probability quantiles of a normal, scaled into [-1, 1].

    With O = :data:`OFFSET`, sigma = 1 / Phi^-1(O) and h = 2^(k-1), the levels are
    sigma * Phi^-1(p) at p = linspace(1 - O, 1/2, h) without its last point, followed by
    linspace(1/2, O, h + 1): both ends are exact, so is zero, and there is one more positive
    level than there are negative ones.

    Args:
        bits: k, 2 to 8.

    Returns:
        (2^k,) float32, ascending.

    Raises:
        ValueError: bits is outside 2 to 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} has no NormalFloat code book; allowed: 2 to 8")
    half = 2 ** (bits - 1)
    negative = torch.linspace(1 - OFFSET, 0.5, half, dtype=torch.float64)[:-1]
    positive = torch.linspace(0.5, OFFSET, half + 1, dtype=torch.float64)
    levels = torch.special.ndtri(torch.cat([negative, positive]))
    levels[half - 1] = 0.0  # Phi^-1(1/2) up to rounding
    return (levels / levels[-1]).float()
