"""Random configurations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from coalora_lib.spaces.space import Choice, ConfigurationSpace, Shape, get_space, parameters


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
    """One random configuration of so many mean bits in expectation, scales included.

    Each layer draws its choice by itself, with probability p(c) proportional to exp(-lambda
    bits(c)), with one lambda for all layers: where they have the same choices, of all distributions
    with that mean the one with the most entropy. A uniform draw over the paper's choices has 4.4
    bits, so that many layers hardly ever come out low. ``layers`` are as for
    :func:`random_configuration`; with shapes, the mean is weighted by the layers' sizes. ValueError
    if no distribution has that mean.
    """
    space = get_space(space)
    count, tables = _tables(layers, space)
    sizes = None if isinstance(layers, int) or len(tables) == 1 else [*map(parameters, layers)]
    chances = _chances(tables, bits, sizes)
    if len(tables) == 1:  # every layer draws from the same distribution
        rows = chances[0].multinomial(count, True, generator=generator)
    else:
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


def _chances(tables: Tensor, bits: float, sizes: Sequence[int] | None) -> Tensor:
    """The probabilities with that mean: (layers, choices) float64, zero where bits are infinite."""
    share = torch.ones(len(tables)) if sizes is None else torch.tensor(sizes)
    share = share.double() / share.sum()
    finite = tables.where(tables.isfinite(), 0.0)
    least, most = share @ tables.amin(1), share @ finite.amax(1)
    if not least < bits < most:
        raise ValueError(
            f"bits={bits} must lie between the least, {least:.4f}, and the most bits of a choice, "
            f"{most:.4f}"
        )
    low, high = -1e3, 1e3  # the mean falls as lambda grows
    for _ in range(60):
        middle = (low + high) / 2
        mean = share @ (_boltzmann(tables, middle) * finite).sum(1)
        low, high = (middle, high) if mean > bits else (low, middle)
    return _boltzmann(tables, low)


def _boltzmann(tables: Tensor, rate: float) -> Tensor:
    """p(c) proportional to exp(-rate bits(c)), of each row; zero where the bits are infinite."""
    return (-rate * tables).masked_fill(tables.isinf(), -torch.inf).softmax(1)
