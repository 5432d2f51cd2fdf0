"""The squared error of one weight under each of the 432 block-wise choices.

Work is shared wherever choices agree. Block maxima depend on B0 alone and scales not on b0; and
one look-up finds every b0's level for a weight, because the thresholds of all code books together
cut the line into intervals in which no code changes.

An estimate takes every block's scale, which costs little, and the codes of a sample of blocks.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from coalora_lib.quantization.blocks import (
    block_scales,
    check_finite,
    check_kind,
    group_scales,
    nonzero,
    restored_scales,
    scale_codes,
    to_blocks,
)
from coalora_lib.quantization.choices import FIELDS, SCALE_DTYPES
from coalora_lib.quantization.codebooks import LevelGrid, code_levels, level_grid, thresholds
from coalora_lib.quantization.sampling import BLOCK, Sample, draw, sample_size

#: Weights in a piece: whole second-level groups for every B0 and B1.
PIECE = max(FIELDS["block_size"]) * max(FIELDS["scale_block_size"])
#: Pieces handled together: on a processor they stay in one core's cache, a GPU wants many.
CPU_PIECES, GPU_PIECES = 16, 256
#: Numbers handled at once where a part is small: a core's cache holds a few times as many.
CPU_NUMBERS = 3 * 2**16
#: How many values each field has, in order: the shape of a table of all choices.
SHAPE = tuple(len(values) for values in FIELDS.values())


def error_parts(
    weight: Tensor,
    code_book: str,
    importance: Tensor | None = None,
    pieces: int | None = None,
    sample: float | None = None,
) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """The squared errors of a weight in parts that may be computed in any order, and added.

    Yields weights that a part stands for, and () to (432,) float64 on the weight's device. The
    importance, of the weight's shape and not negative, are factors of the squared errors. With
    ``pieces``, only so many evenly spaced pieces of 16,384 weights are looked at, and the sums
    scaled up to the whole weight; with ``sample``, this share of the blocks, drawn as
    :mod:`.sampling` says. Errors as :func:`~coalora_lib.quantization.quantize`'s; ValueError also
    for pieces and a sample together.
    """
    if sample is not None and pieces is not None:
        raise ValueError(f"pieces={pieces} and a sample cannot be given together")
    check_kind(weight)
    maxima = [block_scales(to_blocks(weight, size)) for size in FIELDS["block_size"]]
    check_finite(maxima[0].max(), weight)
    offsets = [scales.min() for scales in maxima]
    root = None if importance is None else _root(importance, weight)
    count = len(maxima[-1])
    if sample is not None and (wanted := sample_size(count, sample)) < count:
        blocks = to_blocks(weight, BLOCK)
        roots = None if root is None else to_blocks(root, BLOCK)
        chosen, drawn = draw(wanted, blocks, roots, maxima, offsets)
        some = None if roots is None else roots[chosen]
        compute = partial(_part_errors, blocks[chosen], offsets, some, code_book, sample=drawn)
        yield weight.numel(), compute
        return
    whole = to_blocks(weight, PIECE)
    roots = None if root is None else to_blocks(root, PIECE)
    count = len(whole)
    if pieces is not None and pieces < count:
        chosen = torch.linspace(0, count - 1, pieces, device=whole.device).round().long()
        whole = whole[chosen]
        roots = None if roots is None else roots[chosen]
    factor = count / len(whole)
    together = GPU_PIECES if weight.is_cuda else CPU_PIECES
    for start in range(0, len(whole), together):
        taken = slice(start, start + together)
        some = None if roots is None else roots[taken]
        stands_for = round(whole[taken].numel() * factor)
        yield stands_for, partial(_part_errors, whole[taken], offsets, some, code_book, factor)


def _root(importance: Tensor, weight: Tensor) -> Tensor:
    if importance.shape != weight.shape:
        raise ValueError(f"importance is {tuple(importance.shape)}, not {tuple(weight.shape)}")
    if not (torch.isfinite(importance) & (importance >= 0)).all():
        raise ValueError("importance holds a negative number, a NaN or an infinity")
    return importance.to(weight.device).float().sqrt()


@cache
def _shared_levels(code_book: str, device: torch.device) -> tuple[LevelGrid, list[Tensor]]:
    """The intervals between the thresholds of every b0, and for every b0 the level of each."""
    books = [
        (code_levels(code_book, bits), thresholds(code_book, bits))
        for bits in FIELDS["weight_bits"]
    ]
    together = torch.cat([limits for _, limits in books]).unique()
    levels = []
    for values, limits in books:
        # Past a threshold of the union, how many of this book's thresholds have been passed?
        passed = F.pad(torch.bucketize(together, limits, right=True), (1, 0))
        levels.append(values[passed].to(device))
    return level_grid(together.to(device)), levels


def _part_errors(
    weights: Tensor,
    offsets: list[Tensor],
    roots: Tensor | None,
    code_book: str,
    factor: float = 1.0,
    sample: Sample | None = None,
) -> Tensor:
    """Squared errors of (pieces, PIECE) float32 weights under every choice: (432,) float64.

    ``offsets`` holds m of the whole weight for every B0, ``roots`` the importance's square roots;
    the sums are multiplied by ``factor``. With a ``sample``, the weights are its (blocks, BLOCK).
    """
    device = weights.device
    grid, books = _shared_levels(code_book, device)
    b0s, b1s, b2s, *_ = SHAPE
    # On a processor as many rows at once as its cache holds; on a GPU all of them, since a kernel's
    # launch costs more than its work.
    together = 1 if sample is None else max(1, CPU_NUMBERS // weights.numel())
    if device.type == "cuda":
        together = b1s * b2s
    # Rows (b1, b2) are neighbours in each of the (b0, B0, B1) slices.
    errors = torch.empty(b0s, b1s * b2s, *SHAPE[3:], dtype=torch.float64, device=device)
    for place, (block_size, offset) in enumerate(zip(FIELDS["block_size"], offsets, strict=True)):
        blocks = weights.reshape(-1, block_size)
        importance = None if roots is None else roots.reshape(-1, block_size)
        # Padding has a scale of zero, below m; it counts as the smallest block.
        excess = block_scales(blocks).sub_(offset).clamp_(min=0)
        peaks = None if sample is None else sample.peaks[place]
        for scale_place, rows, scales in _restored_scales(excess, offset, peaks, together):
            scales = scales[..., None]  # (choices of b1 and b2, blocks, 1)
            interval = grid.codes(blocks / nonzero(scales)).flatten()
            target = blocks
            if sample is not None:
                root = sample.roots.repeat_interleave(BLOCK // block_size)[:, None]
                scales, target = scales * root, blocks * root
            for b0, levels in enumerate(books):
                residual = levels.index_select(0, interval).view(len(scales), *blocks.shape)
                residual.mul_(scales).sub_(target)
                if importance is not None:
                    residual.mul_(importance)
                distances = torch.linalg.vector_norm(residual.flatten(1), dim=1)
                errors[b0, rows, place, scale_place] = distances.double().square_()
    return errors.flatten() * factor


def _restored_scales(
    excess: Tensor, offset: Tensor, peaks: list[Tensor] | None, together: int
) -> Iterator[tuple[int, slice, Tensor]]:
    """For each B1, its index, rows of the choices (b1, b2), and their s^, (rows, blocks) float32.

    So many rows ``together``. ``excess`` is u, (blocks,): whole second-level groups, unless the
    largest u in each block's group is given in ``peaks``, for every B1.
    """
    count = math.prod(SHAPE[1:3])
    tops = [float(2**bits - 1) for bits in FIELDS["scale_bits"]]
    top = torch.tensor(tops, device=excess.device)[:, None, None, None]
    dtypes = [SCALE_DTYPES[name] for name in FIELDS["scale_dtype"]]
    for place, scale_block in enumerate(FIELDS["scale_block_size"]):
        groups = excess.view(-1, scale_block if peaks is None else 1)
        largest = groups if peaks is None else peaks[place][:, None]
        stored = torch.stack([group_scales(largest, dtype).float() for dtype in dtypes])
        stored = stored[None, :, :, None]
        codes = scale_codes(groups, stored, top)  # (b1, b2, groups, B1)
        restored = restored_scales(codes, stored, offset, top).view(count, -1)
        for start in range(0, count, together):
            rows = slice(start, start + together)
            yield place, rows, restored[rows]
