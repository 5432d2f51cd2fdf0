"""Bit allocation: which choice each layer gets under a budget (LQ-LoRA, arXiv 2311.12023, 3.2).

    minimise   sum_i e_i(c_i)    subject to    sum_i n_i bits(c_i) <= budget * sum_i n_i

with e_i(c) the squared error of layer i under choice c and n_i its number of parameters.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from torch import Tensor
from tqdm import tqdm

from coalora_lib.configuration import CHOICES, LayerConfig, bits_table, mean_bits
from coalora_lib.quantization.blockwise import (
    block_scales,
    check_weight,
    nearest_level,
    nonzero,
    quantize_scales,
    restore_scales,
    to_blocks,
)
from coalora_lib.quantization.codebooks import normal_float

#: Weights in a piece of the error table: whole second-level groups for every B0 and B1.
PIECE = max(CHOICES["block_size"]) * max(CHOICES["scale_block_size"])

#: Bits per parameter of every choice are whole multiples of 1 / 1024: the finest term is
#: 16 / (64 * 256).
BITS_GRID = 1024


def error_table(weights: Mapping[str, Tensor], pieces: int | None = None) -> Tensor:
    """The squared quantization error of every layer under every choice.

    Args:
        weights: layer name to weight tensor, all on one device.
        pieces: estimate a layer's error from this many evenly spaced pieces of 16,384 weights
            instead of all of them; the estimate is scaled to the whole layer.

    Returns:
        (layers, 432) float64, sums of squared errors; columns as :meth:`LayerConfig.space`.

    Raises:
        TypeError, ValueError: as :func:`coalora_lib.quantization.quantize`, with the layer's name.
    """
    samples, owners, offsets, factors = [], [], [], []
    for row, (name, weight) in enumerate(weights.items()):
        try:
            check_weight(weight)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {name}: {error}") from None
        whole = to_blocks(weight, PIECE)
        count = len(whole) if pieces is None else min(pieces, len(whole))
        samples.append(whole[torch.linspace(0, len(whole) - 1, count).round().long()])
        owners += [row] * count
        offsets.append([smallest_scale(weight, size) for size in CHOICES["block_size"]])
        factors.append(len(whole) / count)
    owner = torch.tensor(owners)
    offset = torch.tensor(offsets)
    table = torch.zeros(len(weights), len(LayerConfig.space()), dtype=torch.float64)
    chunks = torch.arange(len(owner)).split(
        16
    )  # a quarter of a million weights: they stay in the cache
    stacked = torch.cat(samples)
    for rows in tqdm(chunks, "error table", disable=None):
        errors = _piece_errors(stacked[rows], offset[owner[rows]].to(stacked.device))
        table.index_add_(0, owner[rows], errors.cpu())
    return table * torch.tensor(factors, dtype=torch.float64)[:, None]


def smallest_scale(weight: Tensor, block_size: int) -> float:
    """m, the smallest block scale of a whole tensor."""
    return float(block_scales(to_blocks(weight, block_size)).min())


def _piece_errors(pieces: Tensor, offsets: Tensor) -> Tensor:
    """Squared errors of some pieces. Scales do not depend on b0: each is made once for all b0.

    Args:
        pieces: (n, 16384) float32.
        offsets: (n, 3), m of each piece's layer for every B0.

    Returns:
        (n, 432) float64.
    """
    errors = torch.empty(
        len(pieces), len(LayerConfig.space()), dtype=torch.float64, device=pieces.device
    )
    for block_size, offset in zip(CHOICES["block_size"], offsets.T, strict=True):
        blocks = pieces.reshape(-1, block_size)
        maxima = block_scales(blocks)
        block_offsets = offset.repeat_interleave(PIECE // block_size)
        for scale_bits, dtype, scale_block in product(
            CHOICES["scale_bits"], CHOICES["scale_dtype"], CHOICES["scale_block_size"]
        ):
            config = LayerConfig(2, scale_bits, dtype, block_size, scale_block)
            codes, group_scales = quantize_scales(maxima, config, block_offsets)
            scales = restore_scales(codes, group_scales, block_offsets, config)[:, None]
            scaled = blocks / nonzero(scales)
            for bits in CHOICES["weight_bits"]:
                levels = normal_float(bits)
                nearest = levels.to(scaled.device).take(nearest_level(scaled, levels))
                residual = nearest.sub_(scaled).mul_(scales)
                choice = replace(config, weight_bits=bits).choice
                errors[:, choice] = residual.square_().reshape(len(pieces), -1).sum(1)
    return errors


@dataclass(frozen=True)
class Allocation:
    """The solution of the integer program.

    Attributes:
        configs: one configuration for each layer.
        bits: mean bits per parameter, at most the budget.
        error: total squared error.
        gap: relative optimality gap the solver proves; 0 is exact.
    """

    configs: list[LayerConfig]
    bits: float
    error: float
    gap: float


def undominated(errors: Tensor, bits: Tensor) -> Tensor:
    """The choices of one layer that no other choice beats in both error and bits.

    Args:
        errors, bits: (choices,).

    Returns:
        (kept,) int64 in ascending bits: the layer's Pareto staircase.
    """
    order = np.lexsort((errors.numpy(), bits.numpy()))
    best = np.minimum.accumulate(errors.numpy()[order])
    kept = np.concatenate([[True], best[1:] < best[:-1]])
    return torch.from_numpy(order[kept])


@contextmanager
def _quiet_solver() -> Iterator[None]:
    """Drop what HiGHS prints from C whatever its options say; a notebook would store it."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def allocate(errors: Tensor, sizes: Sequence[int], budget: float) -> Allocation:
    """Choose each layer's configuration: least total error within the budget, exactly.

    Each layer's dominated choices are dropped first, which changes no optimum: replacing one by
    its dominator lowers the error and the bits.

    Args:
        errors: (layers, 432), from :func:`error_table`.
        sizes: number of parameters of each layer.
        budget: mean bits per parameter, scales included.

    Raises:
        ValueError: shapes disagree, or the budget is below the smallest feasible one (named).
    """
    bits = bits_table()
    if errors.shape != (len(sizes), len(bits)):
        raise ValueError(
            f"errors must be ({len(sizes)}, {len(bits)}) for {len(sizes)} layers, "
            f"got {tuple(errors.shape)}"
        )
    if not budget >= bits.min():
        raise ValueError(
            f"a budget of {budget} bits is not feasible: the smallest is {bits.min():.6f}"
        )
    # Every choice's bits are a multiple of 1/1024 and layers share large factors: whole numbers
    # keep the constraint exact and the solver's arithmetic well scaled.
    unit = math.gcd(*sizes)
    storage = (bits * BITS_GRID).round() * torch.tensor(sizes)[:, None] / unit
    limit = math.floor(budget * BITS_GRID * (sum(sizes) // unit) + 1e-6)
    kept = [undominated(row, bits) for row in errors]
    lengths = [len(choices) for choices in kept]
    cost = np.concatenate([errors[i, choices].numpy() for i, choices in enumerate(kept)])
    stored = np.concatenate([storage[i, choices].numpy() for i, choices in enumerate(kept)])
    scale = sum(float(errors[i, choices].min()) for i, choices in enumerate(kept)) or 1.0
    one_choice = scipy.sparse.block_diag([np.ones((1, n)) for n in lengths], format="csr")
    with _quiet_solver():
        solution = scipy.optimize.milp(
            cost / scale,  # the solver's absolute tolerances are made for objectives about 1
            integrality=np.ones(len(cost)),
            bounds=scipy.optimize.Bounds(0, 1),
            constraints=[
                scipy.optimize.LinearConstraint(one_choice, 1, 1),
                scipy.optimize.LinearConstraint(stored[None], -np.inf, limit),
            ],
            options={"mip_rel_gap": 0.0},
        )
    if solution.x is None:
        raise RuntimeError(f"the integer program was not solved: {solution.message}")
    picked = [int(part.argmax()) for part in np.split(solution.x, np.cumsum(lengths)[:-1])]
    rows = [int(choices[i]) for choices, i in zip(kept, picked, strict=True)]
    configs = [LayerConfig.space()[row] for row in rows]
    total = sum(float(errors[i, row]) for i, row in enumerate(rows))
    return Allocation(configs, mean_bits(configs, sizes), total, float(solution.mip_gap or 0.0))
