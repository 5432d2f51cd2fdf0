"""The error table: what quantization under each of the 432 choices does to each layer.

Work is shared wherever choices agree. Block maxima depend on B0 alone and scales not on b0; and
one look-up finds every b0's level for a weight, because the midpoints of all code books together
cut the line into intervals in which no code changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from coalora_lib.configuration import CHOICES, SCALE_DTYPES, LayerConfig
from coalora_lib.quantization.blockwise import (
    as_stored,
    block_scales,
    check_finite,
    check_kind,
    nonzero,
    scale_codes_of,
    to_blocks,
)
from coalora_lib.quantization.codebooks import code_levels, midpoints
from coalora_lib.quantization.nearest import LevelGrid, level_grid

#: Weights in a piece: whole second-level groups for every B0 and B1.
PIECE = max(CHOICES["block_size"]) * max(CHOICES["scale_block_size"])
#: Pieces handled together: on a processor they stay in one core's cache, a GPU wants many.
CPU_PIECES, GPU_PIECES = 16, 256


def error_table(
    weights: Mapping[str, Tensor],
    scheme: str = "nf",
    importance: Mapping[str, Tensor] | None = None,
    pieces: int | None = None,
) -> Tensor:
    """The squared quantization error of every layer under every choice.

    e_i(c) = sum over the layer of F (w - w^)^2, with F the importance of each weight, or 1.

    Args:
        weights: layer name to weight tensor.
        scheme: the code book, "nf" or "int".
        importance: layer name to a tensor of the weight's shape, not negative; see
            :func:`coalora_lib.training.fisher_importance`.
        pieces: estimate a layer's error from this many evenly spaced pieces of 16,384 weights
            instead of all of them; the estimate is scaled to the whole layer.

    Returns:
        (layers, 432) float64, sums of squared errors; columns as :meth:`LayerConfig.space`.

    Raises:
        TypeError, ValueError: as :func:`coalora_lib.quantization.quantize`, with the layer's name;
            or an importance is missing, has another shape, or is negative or not finite.
    """
    table = torch.zeros(len(weights), len(LayerConfig.space()), dtype=torch.float64)
    parts = _parts(weights, scheme, importance, pieces)
    on_gpu = any(weight.is_cuda for weight in weights.values())
    total = sum(weight.numel() for weight in weights.values())
    # Operations on a part are too small to spread over threads, so that each thread takes parts.
    workers = 1 if on_gpu else torch.get_num_threads()
    with (
        tqdm(total=total, desc="error table", unit="weights", unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for part, errors in _in_order(pool, _part_errors, parts, 2 * workers):
            table[part.row] += errors.cpu() * part.factor
            bar.update(round(part.weights.numel() * part.factor))
    return table


def _in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[_Part], Tensor],
    parts: Iterator[_Part],
    ahead: int,
) -> Iterator[tuple[_Part, Tensor]]:
    """Each part with its result; only so many parts are made ahead, since they hold memory."""
    running = deque((part, pool.submit(function, part)) for part in islice(parts, ahead))
    while running:
        part, result = running.popleft()
        yield part, result.result()
        running.extend((more, pool.submit(function, more)) for more in islice(parts, 1))


@dataclass(frozen=True)
class _Part:
    """Some pieces of one layer.

    Attributes:
        row: of the table.
        weights: (n, 16384) float32.
        offsets: m of the whole layer for every B0, scalars.
        root_importance: (n, 16384) float32, square roots, or None.
        scheme: the code book.
        factor: weights in the layer for each weight looked at.
    """

    row: int
    weights: Tensor
    offsets: list[Tensor]
    root_importance: Tensor | None
    scheme: str
    factor: float


def _parts(
    weights: Mapping[str, Tensor],
    scheme: str,
    importance: Mapping[str, Tensor] | None,
    pieces: int | None,
) -> Iterator[_Part]:
    """Cut the layers into parts."""
    for row, (name, weight) in enumerate(weights.items()):
        try:
            check_kind(weight)
            maxima = [block_scales(to_blocks(weight, size)) for size in CHOICES["block_size"]]
            check_finite(maxima[0].max(), weight)
            root = None if importance is None else _root_importance(importance.get(name), weight)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {name}: {error}") from None
        offsets = [scales.min() for scales in maxima]
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
            yield _Part(
                row, whole[taken], offsets, None if roots is None else roots[taken], scheme, factor
            )


def _root_importance(importance: Tensor | None, weight: Tensor) -> Tensor:
    if importance is None:
        raise ValueError("has no importance")
    if importance.shape != weight.shape:
        raise ValueError(f"importance is {tuple(importance.shape)}, not {tuple(weight.shape)}")
    if not (torch.isfinite(importance) & (importance >= 0)).all():
        raise ValueError("importance holds a negative number, a NaN or an infinity")
    return importance.to(weight.device).float().sqrt()


@dataclass(frozen=True)
class _SharedLevels:
    """One look-up for the code books of every b0.

    Attributes:
        grid: finds the interval between neighbouring midpoints of all code books together.
        levels: for every b0 the level that each interval belongs to: (intervals,) float32.
    """

    grid: LevelGrid
    levels: tuple[Tensor, ...]


@cache
def _shared_levels(scheme: str, device: torch.device) -> _SharedLevels:
    books = [
        (code_levels(scheme, bits), midpoints(scheme, bits)) for bits in CHOICES["weight_bits"]
    ]
    together = torch.cat([middles for _, middles in books]).unique()
    levels = []
    for values, middles in books:
        # Past a midpoint of the union, how many of this book's midpoints have been passed?
        passed = F.pad(torch.bucketize(together, middles, right=True), (1, 0))
        levels.append(values[passed].to(device))
    return _SharedLevels(level_grid(together.to(device)), tuple(levels))


def _part_errors(part: _Part) -> Tensor:
    """Squared errors of a part under every choice: (432,) float64."""
    device = part.weights.device
    shared = _shared_levels(part.scheme, device)
    errors = torch.empty(len(LayerConfig.space()), dtype=torch.float64, device=device)
    for block_size, offset in zip(CHOICES["block_size"], part.offsets, strict=True):
        blocks = part.weights.reshape(-1, block_size)
        roots = part.root_importance
        roots = None if roots is None else roots.reshape(-1, block_size)
        # Padding has a scale of zero, below m; it counts as the smallest block.
        excess = block_scales(blocks).sub_(offset).clamp_(min=0)
        for configs, scales in _restored_scales(excess, offset, block_size):
            scales = scales[..., None]  # (configs, blocks, 1)
            interval = shared.grid.codes(blocks / nonzero(scales)).flatten()
            for bits, levels in zip(CHOICES["weight_bits"], shared.levels, strict=True):
                residual = levels.index_select(0, interval).view(len(configs), *blocks.shape)
                residual.mul_(scales).sub_(blocks)
                if roots is not None:
                    residual.mul_(roots)
                choices = [replace(config, weight_bits=bits).choice for config in configs]
                distances = torch.linalg.vector_norm(residual.flatten(1), dim=1)
                errors[choices] = distances.double().square_()
    return errors


def _restored_scales(
    excess: Tensor, offset: Tensor, block_size: int
) -> Iterator[tuple[list[LayerConfig], Tensor]]:
    """s^ under every choice of b1, b2 and B1: configurations (of any b0) with theirs.

    Args:
        excess: (blocks,) float32, s - m; whole second-level blocks.
        offset: scalar float32, m.
        block_size: B0.

    Yields:
        Some configurations, and (configurations, blocks) float32: one at a time on a processor,
        whose cache holds no more, all of one B1 on a GPU, whose launches are dear.
    """
    scale_choices = list(product(CHOICES["scale_bits"], CHOICES["scale_dtype"]))
    together = len(scale_choices) if excess.is_cuda else 1
    tops = [float(2**bits - 1) for bits in CHOICES["scale_bits"]]
    top = torch.tensor(tops, device=excess.device)[:, None, None, None]
    for scale_block in CHOICES["scale_block_size"]:
        groups = excess.view(-1, scale_block)
        largest = groups.amax(dim=1)
        stored = [as_stored(largest, SCALE_DTYPES[b2]).float() for b2 in CHOICES["scale_dtype"]]
        stored = torch.stack(stored)[None, :, :, None]
        codes = scale_codes_of(groups, stored, top)  # (b1, b2, groups, B1)
        restored = (offset + codes * stored / top).view(len(scale_choices), -1)
        configs = [LayerConfig(2, *b1b2, block_size, scale_block) for b1b2 in scale_choices]
        for start in range(0, len(configs), together):
            some = slice(start, start + together)
            yield configs[some], restored[some]
