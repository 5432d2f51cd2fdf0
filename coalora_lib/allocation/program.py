"""Bit allocation: which choice each layer gets under a budget (LQ-LoRA, arXiv 2311.12023, 3.2).

    minimise   sum_i e_i(c_i)    subject to    sum_i n_i bits(c_i) <= budget * sum_i n_i

with e_i(c) the squared error of layer i under choice c and n_i its number of parameters. A device
may allow only some choices, fix some layers, and bound the bytes stored.
"""

import math
import sys
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real

import torch
from torch import Tensor

from coalora_lib.allocation.solver import Limit, solve
from coalora_lib.spaces import Choice, ConfigurationSpace, Shape, get_space, parameters

#: Bits are counted in whole parts of a bit; a space whose bits have no common part that is at
#: least this small has them rounded up to it, so that a budget holds in any case.
FINEST_GRID = 2**20
#: What rounding in a product of a budget and a number of weights may take, in parts of a bit.
ROUNDING = 1e-6
#: What all layers may have together, so that parts of a bit are counted in int64.
MOST_WEIGHTS = 2**39


@dataclass(frozen=True)
class Constraints:
    """What a device can hold and run; see :func:`allocate` for each."""

    budget: float | None = None
    allowed: Mapping[str, Collection] | None = None
    fixed: Mapping[str | int, Choice] | None = None
    max_bytes: int | None = None
    limits: Sequence[Limit] = ()


@dataclass(frozen=True)
class Allocation:
    """The solution of the integer program."""

    configs: list[Choice]  #: one choice for each layer
    bits: float  #: mean bits per parameter, scales included; at most the budget
    nbytes: int  #: bytes stored, padding and offsets included; at most the limit
    error: float  #: total squared error
    gap: float  #: (error - proven lower bound) / error; 0 is exact


def allocate(
    errors: Tensor,
    shapes: Sequence[Shape],
    budget: float | None = None,
    space: str | ConfigurationSpace = "nf",
    allowed: Mapping[str, Collection] | None = None,
    fixed: Mapping[str | int, Choice] | None = None,
    max_bytes: int | None = None,
    limits: Sequence[Limit] = (),
    names: Sequence[str] | None = None,
) -> Allocation:
    """Choose each layer's quantization: least total error within the limits, exactly.

    Each layer's dominated choices are dropped first: replacing one by its dominator lowers the
    error and what is stored. What remains is solved by :mod:`.knapsack`, or by SciPy's HiGHS where
    several limits bind.

    Args:
        errors: (layers, choices), from :func:`error_table`.
        shapes: each layer's shape, or its number of parameters where the space asks no more.
        budget: mean bits per parameter, scales included; unlimited by default.
        space: whose choices; a name or a space.
        allowed: the choices that the device can run: from fields of the space to allowed values,
            such as ``{"weight_bits": (4, 8), "block_size": (64,)}``. It does not bind fixed layers.
        fixed: choices given beforehand, by the layer's position, or by its name among ``names``.
        max_bytes: bytes that all layers may take together, padding and offsets included.
        limits: bounds on further costs that are sums over layers, such as measured latencies.

    Raises:
        ValueError: shapes disagree; a field, a value or a layer is not known; or the limits cannot
            be met (the smallest feasible budget or size is named).
        TypeError: an argument is of another kind than said, or a fixed choice not of the space.
    """
    space = get_space(space)
    errors, shapes = _real(errors), _positive(shapes)
    if tuple(errors.shape) != (expected := (len(shapes), len(space.choices))):
        raise ValueError(
            f"errors must be {expected} for {len(shapes)} layers, got {tuple(errors.shape)}"
        )
    if not torch.isfinite(errors).all():
        raise ValueError("errors hold a NaN or an infinity")
    rows = _usable(space, shapes, allowed, fixed or {}, names)
    for limit in limits:
        if not isinstance(limit, Limit):
            raise TypeError(f"limits: {limit!r:.80} is not a Limit")
        if limit.costs.shape != tuple(errors.shape):
            raise ValueError(
                f"the costs of limit {limit.name!r} must be {tuple(errors.shape)}, got "
                f"{limit.costs.shape}"
            )
    every = [*_standard_limits(space, shapes, rows, budget, max_bytes), *limits]
    for limit in limits:
        if not limit.most >= (least := _smallest(torch.from_numpy(limit.costs), rows)):
            raise ValueError(
                f"a limit of {limit.most} on {limit.name!r} is not feasible: the smallest is "
                f"{least}"
            )
    picked, gap = solve(errors, rows, every)
    configuration = space.from_rows(picked)
    return Allocation(
        configuration,
        space.mean_bits(configuration, shapes),
        sum(space.nbytes(c, shape) for c, shape in zip(configuration, shapes, strict=True)),
        sum(float(errors[i, row]) for i, row in enumerate(picked)),
        gap,
    )


def _usable(
    space: ConfigurationSpace,
    shapes: Sequence[Shape],
    allowed: Mapping[str, Collection] | None,
    fixed: Mapping[str | int, Choice],
    names: Sequence[str] | None,
) -> list[Tensor]:
    """The rows of the space that each layer may take."""
    for name, given in (("allowed", allowed), ("fixed", fixed)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{name}={given!r:.80} must be a dictionary")
    usable = torch.ones(len(space.choices), dtype=torch.bool)
    for field, values in (allowed or {}).items():
        if field not in space.fields:
            known = ", ".join(space.fields)
            raise ValueError(f"{field!r:.80} is not a field of a choice; allowed: {known}")
        if isinstance(values, str) or not isinstance(values, Collection):
            raise TypeError(
                f"{field}={values!r:.80}: give the allowed values as a tuple, as (4, 8)"
            )
        all_values = space.fields[field]
        if not len(values) or not all(isinstance(v, Hashable) and v in all_values for v in values):
            raise ValueError(f"{field}={tuple(values)!r:.80} is not among {space.fields[field]}")
        usable &= torch.tensor([getattr(c, field) in values for c in space.choices])
    masks = [usable & space.mask(shape) for shape in shapes]
    for layer, choice in fixed.items():
        position = _position(layer, len(shapes), names)
        try:
            row = space.index(choice)
        except TypeError as error:
            raise TypeError(f"fixed layer {layer!r:.80}: {error}") from None
        if not space.mask(shapes[position])[row]:
            raise ValueError(
                f"fixed layer {layer!r}: {choice!r} is not allowed for {shapes[position]}"
            )
        masks[position] = torch.arange(len(space.choices)) == row
    for layer, mask in enumerate(masks):
        if not mask.any():
            named = layer if names is None else names[layer]
            raise ValueError(f"layer {named} of shape {shapes[layer]} has no allowed choice")
    return [mask.nonzero()[:, 0] for mask in masks]


def _position(layer: str | int, layers: int, names: Sequence[str] | None) -> int:
    if isinstance(layer, str):
        if names is None or layer not in names:
            raise ValueError(f"fixed layer {layer!r:.80} is not among the names given")
        return list(names).index(layer)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"fixed layer {layer!r:.80} is neither a position nor a name")
    if not 0 <= layer < layers:
        raise ValueError(f"fixed layer {layer} is outside 0..{layers - 1}")
    return layer


def _standard_limits(
    space: ConfigurationSpace,
    shapes: Sequence[Shape],
    rows: Sequence[Tensor],
    budget: float | None,
    max_bytes: int | None,
) -> list[Limit]:
    """The limits in bits and bytes that are given, checked to be feasible."""
    limits = []
    if budget is not None:
        budget = _number("budget", budget)
        parts, whole = bit_parts(space, shapes)
        smallest = _smallest(parts, rows)
        if not budget * whole + ROUNDING >= smallest:
            raise ValueError(
                f"a budget of {budget} bits is not feasible: the smallest is "
                f"{math.ceil(smallest / whole * 1e6) / 1e6:.6f}"
            )
        most = parts.max(1).values.sum().item()
        bound = math.floor(min(budget * whole + ROUNDING, most))
        limits.append(Limit(parts.numpy(), bound, "bits"))
    if max_bytes is not None:
        most_bytes = _number("max_bytes", max_bytes)
        stored = torch.stack([space.bytes_table(shape) for shape in shapes])
        smallest = _smallest(stored, rows)
        if not most_bytes >= smallest:
            raise ValueError(
                f"a limit of {max_bytes} bytes is not feasible: the smallest is {smallest}"
            )
        bound = int(min(most_bytes, stored.max(1).values.sum().item()))
        limits.append(Limit(stored.numpy(), bound, "bytes"))
    return limits


def _real(errors: Tensor) -> Tensor:
    """An error table in float64, on the processor; TypeError for anything else."""
    if not isinstance(errors, Tensor) or errors.is_complex():
        kind = errors.dtype if isinstance(errors, Tensor) else type(errors).__name__
        raise TypeError(f"errors must be a tensor of real numbers, not {kind}")
    return errors.detach().double().cpu()


def _positive(shapes: Sequence[Shape]) -> Sequence[Shape]:
    """Shapes as they are.

    Raises:
        TypeError, ValueError: one is no shape, or all are more than :data:`MOST_WEIGHTS`.
    """
    if isinstance(shapes, str | bytes) or not isinstance(shapes, Sequence) or not shapes:
        raise TypeError(f"shapes={shapes!r:.80} must be a list of shapes, at least one")
    for number, shape in enumerate(shapes):
        sides = shape if isinstance(shape, Sequence) else [shape]
        if not sides or not all(isinstance(side, Integral) and side > 0 for side in sides):
            raise ValueError(f"shape {number}, {shape!r:.80}, must be of positive whole numbers")
    if (weights := sum(map(parameters, shapes))) > MOST_WEIGHTS:
        raise ValueError(f"shapes of {weights!r:.40} weights; at most {MOST_WEIGHTS}")
    return shapes


def _number(name: str, value: float) -> float:
    """A limit within what a float holds; TypeError if it is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r:.80} must be a number")
    return float(max(min(value, sys.float_info.max), -sys.float_info.max))


def bit_parts(space: ConfigurationSpace, shapes: Sequence[Shape]) -> tuple[Tensor, int]:
    """What layers store as whole numbers, so that a budget is exact: (layers, choices) int64.

    And how many of these units one bit per parameter of the whole model is.
    """
    tables = torch.stack([space.bits_table(shape) for shape in shapes])
    grid = _grid(tables)
    sizes = [parameters(shape) for shape in shapes]
    unit = math.gcd(*sizes)  # layers share large factors
    counts = torch.tensor([size // unit for size in sizes])
    # Up where the grid is too coarse; less the rounding of bits that are on it.
    parts = (tables * grid - ROUNDING).ceil().long() * counts[:, None]
    return parts, sum(sizes) // unit * grid


def _grid(tables: Tensor) -> int:
    """The parts of a bit that all of some bits are multiples of; 1024 for the paper's choices."""
    found = 1
    for value in tables.unique().tolist():
        found = math.lcm(found, Fraction(value).limit_denominator(FINEST_GRID).denominator)
        if found > FINEST_GRID:
            return FINEST_GRID
    return found


def spread(low: float, high: float, count: int) -> tuple[float, ...]:
    """``count`` budgets at equal distances, both ends included; one alone is the middle."""
    if count == 1:
        return ((low + high) / 2,)
    return tuple(low + (high - low) * i / (count - 1) for i in range(count))


def _smallest(stored: Tensor, rows: Sequence[Tensor]) -> int:
    return sum(int(costs[usable].min()) for costs, usable in zip(stored, rows, strict=True))
