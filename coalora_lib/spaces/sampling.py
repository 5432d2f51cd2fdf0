"""Random configurations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from coalora_lib.spaces.space import Choice, ConfigurationSpace, Shape, get_space


def random_configuration(
    layers: int | Sequence[Shape],
    generator: torch.Generator,
    space: str | ConfigurationSpace = "nf",
) -> list[Choice]:
    """One configuration drawn uniformly from all that are allowed.

    ``layers`` are the number of layers, or their shapes where bits or allowed choices depend on
    them.
    """
    space = get_space(space)
    count, tables = _tables(layers, space)
    if len(tables) == 1 and tables.isfinite().all():
        rows = torch.randint(len(space.choices), (count,), generator=generator)
    else:
        usable = tables.isfinite().double().expand(count, -1)
        rows = usable.multinomial(1, generator=generator)[:, 0]
    return space.from_rows(rows.tolist())


def random_at_bits(
    layers: int | Sequence[Shape],
    bits: float,
    generator: torch.Generator,
    space: str | ConfigurationSpace = "nf",
) -> list[Choice]:
    """One random configuration whose layers have so many bits in expectation, scales included.

    Each layer draws its choice by itself, with probability p(c) proportional to exp(-lambda
    bits(c)): of all distributions with that mean the one with the most entropy. A uniform draw
    over the paper's choices has 4.4 bits, so that many layers hardly ever come out low. ``layers``
    are as for :func:`random_configuration`. ValueError if no distribution has that mean.
    """
    space = get_space(space)
    count, tables = _tables(layers, space)
    if len(tables) == 1:  # every layer draws from the same distribution
        rows = _chances(tables[0], bits).multinomial(count, True, generator=generator)
    else:
        chances = torch.stack([_chances(table, bits) for table in tables])
        rows = chances.multinomial(1, generator=generator)[:, 0]
    return space.from_rows(rows.tolist())


def _tables(layers: int | Sequence[Shape], space: ConfigurationSpace) -> tuple[int, Tensor]:
    """The number of layers, and (layers, choices) bits, infinite where a choice is not allowed.

    One row stands for all layers where they do not differ.
    """
    if isinstance(layers, int):
        return layers, space.bits_table()[None]
    tables = torch.stack([space.allowed_bits(shape) for shape in layers])
    return len(tables), tables[:1] if (tables == tables[0]).all() else tables


def _chances(table: Tensor, bits: float) -> Tensor:
    """The probabilities with that mean: (choices,) float64, zero where the bits are infinite."""
    usable = table.isfinite()
    table = table[usable]
    if not table.min() < bits < table.max():
        raise ValueError(
            f"bits={bits} must lie between the least, {table.min():.4f}, and the most bits of a "
            f"choice, {table.max():.4f}"
        )
    low, high = -1e3, 1e3  # the mean falls as lambda grows
    for _ in range(60):
        middle = (low + high) / 2
        mean = torch.softmax(-middle * table, 0) @ table
        low, high = (middle, high) if mean > bits else (low, middle)
    chances = torch.zeros(len(usable), dtype=table.dtype)
    chances[usable] = torch.softmax(-low * table, 0)
    return chances
