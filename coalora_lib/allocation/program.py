"""Bit allocation: which choice each layer gets under a budget (LQ-LoRA, arXiv 2311.12023, 3.2).

    minimise   sum_i e_i(c_i)    subject to    sum_i n_i bits(c_i) <= budget * sum_i n_i

with e_i(c) the squared error of layer i under choice c and n_i its number of parameters. A device
may allow only some choices, fix some layers, and bound the bytes stored.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from coalora_lib.allocation import knapsack
from coalora_lib.configuration import CHOICES, LayerConfig, bits_table, mean_bits

#: Bits per parameter of every choice are whole multiples of 1 / 1024: the finest term is
#: 16 / (64 * 256).
BITS_GRID = 1024


@dataclass(frozen=True)
class Device:
    """What a device can hold and run; see :func:`allocate` for each.

    Attributes:
        budget: mean bits per parameter, scales included.
        allowed: field of :class:`LayerConfig` to the values it may have there.
        fixed: configurations given beforehand, by the layer's name or its position.
        max_bytes: bytes that all quantized layers may take together.
    """

    budget: float | None = None
    allowed: Mapping[str, Sequence] | None = None
    fixed: Mapping[str | int, LayerConfig] | None = None
    max_bytes: int | None = None


@dataclass(frozen=True)
class Allocation:
    """The solution of the integer program.

    Attributes:
        configs: one configuration for each layer.
        bits: mean bits per parameter, scales included; at most the budget.
        nbytes: bytes stored, padding and offsets included; at most the limit.
        error: total squared error.
        gap: (error - proven lower bound) / error; 0 is exact.
    """

    configs: list[LayerConfig]
    bits: float
    nbytes: int
    error: float
    gap: float


def undominated(errors: Tensor, bits: Tensor) -> Tensor:
    """The choices of one layer that no other choice beats in both error and bits.

    Args:
        errors, bits: (choices,).

    Returns:
        (kept,) int64 in strictly ascending bits and descending error: the layer's staircase.
    """
    order = np.lexsort((errors.numpy(), bits.numpy()))
    best = np.minimum.accumulate(errors.numpy()[order])
    kept = np.concatenate([[True], best[1:] < best[:-1]])
    return torch.from_numpy(order[kept])


def allocate(
    errors: Tensor,
    sizes: Sequence[int],
    budget: float | None = None,
    allowed: Mapping[str, Sequence] | None = None,
    fixed: Mapping[str | int, LayerConfig] | None = None,
    max_bytes: int | None = None,
    names: Sequence[str] | None = None,
) -> Allocation:
    """Choose each layer's configuration: least total error within the limits, exactly.

    Each layer's dominated choices are dropped first, which changes no optimum: replacing one by
    its dominator lowers the error and what is stored. What remains is solved by
    :mod:`.knapsack`, or by SciPy's HiGHS where a budget and a limit in bytes both bind.

    Args:
        errors: (layers, 432), from :func:`error_table`.
        sizes: number of parameters of each layer.
        budget: mean bits per parameter, scales included; unlimited by default.
        allowed: what the device can run: field of :class:`LayerConfig` to its allowed values, such
            as ``{"weight_bits": (4, 8), "block_size": (64,)}``. It does not bind fixed layers.
        fixed: configurations given beforehand, by the layer's name or its position.
        max_bytes: bytes that all layers may take together, padding and offsets included.
        names: the layers' names, needed where ``fixed`` uses them.

    Raises:
        ValueError: shapes disagree; a field, a value or a layer is not known; or the limits cannot
            be met (the smallest feasible budget or size is named).
        TypeError: allowed values are no collection, or a fixed one is no LayerConfig.
    """
    _check_errors(errors, sizes)
    choices = _choices(len(sizes), allowed, fixed or {}, names)
    limits = _limits(sizes, choices, budget, max_bytes)
    picked, gap = _solve(errors, choices, limits)
    configs = [LayerConfig.space()[row] for row in picked]
    return Allocation(
        configs,
        mean_bits(configs, sizes),
        sum(config.nbytes(size) for config, size in zip(configs, sizes, strict=True)),
        sum(float(errors[i, row]) for i, row in enumerate(picked)),
        gap,
    )


@dataclass(frozen=True)
class Limit:
    """A bound on what the layers store together, in whole units.

    Attributes:
        stored: (layers, 432) int64, what each choice stores.
        most: the bound.
    """

    stored: NDArray[np.int64]
    most: int


def _check_errors(errors: Tensor, sizes: Sequence[int]) -> None:
    expected = (len(sizes), len(LayerConfig.space()))
    if tuple(errors.shape) != expected:
        raise ValueError(
            f"errors must be {expected} for {len(sizes)} layers, got {tuple(errors.shape)}"
        )
    if not torch.isfinite(errors).all():
        raise ValueError("errors hold a NaN or an infinity")


def _choices(
    layers: int,
    allowed: Mapping[str, Sequence] | None,
    fixed: Mapping[str | int, LayerConfig],
    names: Sequence[str] | None,
) -> list[Tensor]:
    """The rows of the space that each layer may take."""
    usable = torch.ones(len(LayerConfig.space()), dtype=torch.bool)
    for field, values in (allowed or {}).items():
        if field not in CHOICES:
            raise ValueError(f"{field!r} is no field of a choice; allowed: {', '.join(CHOICES)}")
        if isinstance(values, str) or not isinstance(values, Collection):
            raise TypeError(f"{field}={values!r}: give the allowed values as a tuple, as (4, 8)")
        if not values or not set(values) <= set(CHOICES[field]):
            raise ValueError(f"{field}={tuple(values)!r} is not among {CHOICES[field]}")
        usable &= torch.tensor([getattr(c, field) in values for c in LayerConfig.space()])
    rows = [usable.nonzero()[:, 0]] * layers
    for layer, config in fixed.items():
        if isinstance(layer, str):
            if layer not in (names or ()):
                raise ValueError(f"fixed layer {layer!r} is not among the names given")
            position = list(names).index(layer)
        else:
            position = layer
        if not 0 <= position < layers:
            raise ValueError(f"fixed layer {layer} is outside 0..{layers - 1}")
        if not isinstance(config, LayerConfig):
            raise TypeError(f"fixed layer {layer!r}: {config!r} is not a LayerConfig")
        rows[position] = torch.tensor([config.choice])
    return rows


def _limits(
    sizes: Sequence[int], choices: Sequence[Tensor], budget: float | None, max_bytes: int | None
) -> list[Limit]:
    """The limits that are given, checked to be feasible."""
    limits = []
    if budget is not None:
        # Every choice's bits are a multiple of 1/1024 and layers share large factors: whole
        # numbers keep the limit exact.
        unit = math.gcd(*sizes)
        stored = (bits_table() * BITS_GRID).round().long() * torch.tensor(sizes)[:, None] // unit
        whole = sum(sizes) // unit * BITS_GRID
        smallest = _smallest(stored, choices)
        if not budget * whole + 1e-6 >= smallest:
            raise ValueError(
                f"a budget of {budget} bits is not feasible: the smallest is "
                f"{math.ceil(smallest / whole * 1e6) / 1e6:.6f}"
            )
        most = stored.max(1).values.sum().item()
        limits.append(Limit(stored.numpy(), math.floor(min(budget * whole + 1e-6, most))))
    if max_bytes is not None:
        stored = torch.tensor([[c.nbytes(size) for c in LayerConfig.space()] for size in sizes])
        smallest = _smallest(stored, choices)
        if not max_bytes >= smallest:
            raise ValueError(
                f"a limit of {max_bytes} bytes is not feasible: the smallest is {smallest}"
            )
        limits.append(Limit(stored.numpy(), int(max_bytes)))
    return limits


def _smallest(stored: Tensor, choices: Sequence[Tensor]) -> int:
    return sum(int(row[rows].min()) for row, rows in zip(stored, choices, strict=True))


def _solve(
    errors: Tensor, choices: Sequence[Tensor], limits: Sequence[Limit]
) -> tuple[list[int], float]:
    """The choice of each layer, and the gap proven."""
    if not limits:
        return [int(rows[errors[i, rows].argmin()]) for i, rows in enumerate(choices)], 0.0
    for limit in limits:  # if the solution under one limit meets the others, they do not bind
        picked = _solve_one(errors, choices, limit)
        if picked is None:
            break
        layers = range(len(picked))
        if all(sum(other.stored[layers, picked]) <= other.most for other in limits):
            return picked, 0.0
    return integer_program(errors, choices, limits)


def _solve_one(errors: Tensor, choices: Sequence[Tensor], limit: Limit) -> list[int] | None:
    kept = [
        rows[undominated(errors[i, rows], torch.from_numpy(limit.stored[i])[rows])].numpy()
        for i, rows in enumerate(choices)
    ]
    costs = [errors[i, rows].double().numpy() for i, rows in enumerate(kept)]
    weights = [limit.stored[i, rows] for i, rows in enumerate(kept)]
    picked = knapsack.solve(costs, weights, limit.most)
    if picked is None:
        return None
    return [int(rows[position]) for rows, position in zip(kept, picked, strict=True)]


def integer_program(
    errors: Tensor, choices: Sequence[Tensor], limits: Sequence[Limit]
) -> tuple[list[int], float]:
    """The integer program as it is written down, by SciPy's HiGHS: any number of limits.

    Raises:
        ValueError: no configuration meets all limits at once.
        RuntimeError: the solver gave up.
    """
    lengths = [len(rows) for rows in choices]
    cost = np.concatenate([errors[i, rows].numpy() for i, rows in enumerate(choices)])
    scale = sum(float(errors[i, rows].min()) for i, rows in enumerate(choices)) or 1.0
    one_choice = scipy.sparse.block_diag([np.ones((1, n)) for n in lengths], format="csr")
    constraints = [scipy.optimize.LinearConstraint(one_choice, 1, 1)]
    for limit in limits:
        stored = [limit.stored[i, rows] for i, rows in enumerate(choices)]
        row = np.concatenate(stored).astype(float)[None]
        constraints.append(scipy.optimize.LinearConstraint(row, -np.inf, limit.most))
    with _quiet_solver():
        solution = scipy.optimize.milp(
            cost / scale,  # the solver's absolute tolerances are made for objectives about 1
            integrality=np.ones(len(cost)),
            bounds=scipy.optimize.Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
    if solution.status == 2:
        raise ValueError("the budget and the limit in bytes cannot both be met")
    if solution.x is None:
        raise RuntimeError(f"the integer program was not solved: {solution.message}")
    parts = np.split(solution.x, np.cumsum(lengths)[:-1])
    picked = [int(rows[part.argmax()]) for rows, part in zip(choices, parts, strict=True)]
    return picked, float(solution.mip_gap or 0.0)


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
