"""A sample of a weight's blocks that stands for all of them in an estimate of the errors.

Every scale of the weight is known, which costs little. What is sampled is the blocks whose weights
are given codes. A block is drawn with a probability p that is the mean of three shares:

    an equal share;   its share of all F w^2;   its share of all F S^2

with F the importance, or 1, and S the largest scale of the block's second-level group: an error is
of the size of the weights, or of the steps that S sets for the scales. One block is drawn from each
of n stretches of equal total p, so that they are spread over the weight. Its errors count 1 / (n p)
times, so that the sums are unbiased (Hansen and Hurwitz 1943; stratified).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from coalora_lib.quantization.blocks import nonzero, to_blocks
from coalora_lib.quantization.choices import FIELDS

#: Weights in a block that is drawn: whole blocks for every B0.
BLOCK = max(FIELDS["block_size"])
#: Blocks that a sample holds at least.
FEWEST = 192


class Sample(NamedTuple):
    """What the blocks of a sample bring with them, the rest of their groups not being there.

    Attributes:
        roots: square root of the factor of each block's errors, (drawn,) float32.
        peaks: the largest s - m in the group of each block, for every B0 and B1
            (drawn * BLOCK / B0,) float32.
    """

    roots: Tensor
    peaks: list[list[Tensor]]


def sample_size(count: int, share: float) -> int:
    """How many of a weight's blocks to draw; all where half of them or more would be drawn."""
    wanted = max(round(count * share), FEWEST)
    return count if 2 * wanted >= count else wanted


def draw(
    wanted: int,
    blocks: Tensor,
    roots: Tensor | None,
    maxima: list[Tensor],
    offsets: list[Tensor],
) -> tuple[Tensor, Sample]:
    """The same blocks at every call.

    Args:
        wanted: how many to draw.
        blocks: of the whole weight, (count, BLOCK) float32.
        roots: square root of the importance, as the blocks; or None.
        maxima: s of the whole weight for every B0, (blocks,).
        offsets: m for every B0, scalars.

    Returns:
        Rows of ``blocks``, (drawn,) int64, and what they bring.
    """
    count = len(blocks)
    group = max(FIELDS["scale_block_size"])
    largest = to_blocks(maxima[-1], group).amax(1).repeat_interleave(group)[:count]
    importance = torch.ones_like(blocks[:, :1]) if roots is None else roots
    shares = torch.full((count,), 1 / count, dtype=torch.float64, device=blocks.device)
    for values in (blocks * importance, largest[:, None] * importance):
        sizes = torch.linalg.vector_norm(values, dim=1).double().square()
        shares += sizes / nonzero(sizes.sum())
    ends = shares.cumsum(0)
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(wanted, generator=generator, dtype=torch.float64)
    places = (torch.arange(wanted) + inside).to(ends.device) * (ends[-1] / wanted)
    chosen = torch.searchsorted(ends, places).clamp_(max=count - 1)
    factors = ends[-1] / (wanted * shares[chosen])
    return chosen, Sample(factors.sqrt().float(), _peaks(chosen, maxima, offsets))


def _peaks(chosen: Tensor, maxima: list[Tensor], offsets: list[Tensor]) -> list[list[Tensor]]:
    found = []
    for size, scales, offset in zip(FIELDS["block_size"], maxima, offsets, strict=True):
        parts = torch.arange(BLOCK // size, device=chosen.device)
        places = (chosen[:, None] * len(parts) + parts).flatten()
        groups = ((to_blocks(scales - offset, n), n) for n in FIELDS["scale_block_size"])
        found.append([excess.amax(1)[places // n] for excess, n in groups])
    return found
