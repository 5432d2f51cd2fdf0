"""Quantization configurations: what may be chosen for a layer, and what it costs.

A layer's configuration is c = [b0, b1, b2, B0, B1] (paper, section 3): the bits of the weight
codes, the bits of the quantized block scales, the dtype of the second-level scales, the weights
in a block and the blocks in a second-level block. There are 4 * 4 * 3 * 3 * 3 = 432 choices.

A model's configuration is a list of :class:`LayerConfig`, one for each layer in the model's order.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property

import torch
from torch import Tensor

#: What each field may be, in the order of c = [b0, b1, b2, B0, B1].
CHOICES: dict[str, tuple] = {
    "weight_bits": (2, 3, 4, 8),
    "scale_bits": (2, 3, 4, 8),
    "scale_dtype": ("bf16", "fp16", "fp32"),
    "block_size": (16, 32, 64),
    "scale_block_size": (16, 64, 256),
}
#: Number of choices of each field: the bounds of the integer coordinates the search walks on.
FIELD_SIZES: tuple[int, ...] = tuple(len(values) for values in CHOICES.values())
#: What one step of each field's index moves a choice's row in :meth:`LayerConfig.space` by.
STRIDES: tuple[int, ...] = tuple(math.prod(FIELD_SIZES[i + 1 :]) for i in range(len(FIELD_SIZES)))
SCALE_DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


@dataclass(frozen=True)
class LayerConfig:
    """The quantization configuration c of one linear layer.

    Args:
        weight_bits: b0, bits of a weight code.
        scale_bits: b1, bits of a quantized block scale.
        scale_dtype: b2, dtype of the second-level scales: "bf16", "fp16" or "fp32".
        block_size: B0, weights that share a scale.
        scale_block_size: B1, scales that share a second-level scale.

    Raises:
        ValueError: a value is not among :data:`CHOICES`; the message names it.
    """

    weight_bits: int
    scale_bits: int
    scale_dtype: str
    block_size: int
    scale_block_size: int

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is not a choice; allowed: {allowed}")

    @cached_property
    def bits_per_parameter(self) -> float:
        """Storage in bits per parameter, scales included: b0 + b1/B0 + bits(b2)/(B0*B1)."""
        second_level = torch.finfo(SCALE_DTYPES[self.scale_dtype]).bits
        return (
            self.weight_bits
            + self.scale_bits / self.block_size
            + second_level / (self.block_size * self.scale_block_size)
        )

    def stored_elements(self, parameters: int) -> tuple[int, int, int]:
        """What a tensor of so many parameters is stored as, beside its float32 offset.

        Returns:
            Bytes of packed weight codes (the last block padded), bytes of packed scale codes, and
            number of second-level scales. Eight codes of k bits fill k bytes.
        """
        blocks = math.ceil(parameters / self.block_size)
        return (
            blocks * self.block_size // 8 * self.weight_bits,
            math.ceil(blocks / 8) * self.scale_bits,
            math.ceil(blocks / self.scale_block_size),
        )

    def nbytes(self, parameters: int) -> int:
        """Bytes that a tensor of so many parameters takes, padding and offset included."""
        codes, scale_codes, groups = self.stored_elements(parameters)
        dtype = SCALE_DTYPES[self.scale_dtype]
        return codes + scale_codes + groups * dtype.itemsize + torch.float32.itemsize

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """The position of each field's value in :data:`CHOICES`: five integers."""
        return tuple(allowed.index(getattr(self, name)) for name, allowed in CHOICES.items())

    @classmethod
    def from_indices(cls, indices: Sequence[int]) -> LayerConfig:
        """The inverse of :attr:`indices`.

        Raises:
            ValueError: not five integers, or one of them outside its field's range.
        """
        if len(indices) != len(CHOICES):
            raise ValueError(f"a layer has {len(CHOICES)} indices, got {len(indices)}")
        values = []
        for index, (name, allowed) in zip(indices, CHOICES.items(), strict=True):
            if not 0 <= index < len(allowed):
                raise ValueError(f"index {index} of {name} is outside 0..{len(allowed) - 1}")
            values.append(allowed[int(index)])
        return cls(*values)

    @cached_property
    def choice(self) -> int:
        """This configuration's row in :meth:`space`, 0 to 431."""
        return sum(i * stride for i, stride in zip(self.indices, STRIDES, strict=True))

    @classmethod
    @cache
    def space(cls) -> tuple[LayerConfig, ...]:
        """All 432 configurations in lexicographic order of the fields (b0 slowest, B1 fastest)."""
        return tuple(cls(*values) for values in itertools.product(*CHOICES.values()))


#: The choice of the most bits and the smallest blocks, nearest to the unquantized weights.
FINEST = LayerConfig(8, 8, "fp32", 16, 16)


def to_indices(configuration: Sequence[LayerConfig]) -> Tensor:
    """A model's configuration as integers: (layers, 5), int64."""
    return torch.tensor([config.indices for config in configuration], dtype=torch.int64)


def from_indices(indices: Tensor) -> list[LayerConfig]:
    """The inverse of :func:`to_indices`; also takes the flat form (5 * layers,).

    Raises:
        ValueError: the number of integers is no multiple of five, or one is out of range.
    """
    if indices.numel() % len(CHOICES):
        raise ValueError(f"{indices.numel()} indices are no multiple of {len(CHOICES)}")
    rows = indices.reshape(-1, len(CHOICES)).tolist()
    return [LayerConfig.from_indices(row) for row in rows]


def to_json(configuration: Sequence[LayerConfig]) -> str:
    """A model's configuration as a JSON list of objects, one for each layer."""
    return json.dumps([asdict(config) for config in configuration])


def from_json(text: str) -> list[LayerConfig]:
    """The inverse of :func:`to_json`.

    Raises:
        ValueError: not a list of objects with exactly the fields of :class:`LayerConfig`.
    """
    rows = json.loads(text)
    names = {field.name for field in fields(LayerConfig)}
    if not isinstance(rows, list):
        raise ValueError(f"a configuration is a JSON list, got {type(rows).__name__}")
    for position, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != names:
            raise ValueError(f"layer {position} must have the fields {sorted(names)}, got {row!r}")
    return [LayerConfig(**row) for row in rows]


def mean_bits(configuration: Sequence[LayerConfig], sizes: Sequence[int]) -> float:
    """The model's bits per parameter: the layers' bits weighted by their sizes.

    Args:
        configuration: one configuration for each layer.
        sizes: number of parameters of each layer.

    Raises:
        ValueError: the two lengths differ.
    """
    if len(configuration) != len(sizes):
        raise ValueError(f"{len(configuration)} configurations for {len(sizes)} layers")
    stored = sum(c.bits_per_parameter * n for c, n in zip(configuration, sizes, strict=True))
    return stored / sum(sizes)


def bits_table() -> Tensor:
    """Bits per parameter of the 432 choices in the order of :meth:`LayerConfig.space`, float64."""
    return torch.tensor([c.bits_per_parameter for c in LayerConfig.space()], dtype=torch.float64)


class MeanBits:
    """Mean bits of many configurations at once: the search's second objective.

    Args:
        sizes: number of parameters of each layer.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        weights = torch.tensor(sizes, dtype=torch.float64)
        self._shares = weights / weights.sum()
        self._table, self._strides = bits_table(), torch.tensor(STRIDES)

    def __call__(self, indices: Tensor) -> Tensor:
        """(n, 5 * layers) integers to (n,) float64 bits per parameter, scales included."""
        return self._table[self._rows(indices)] @ self._shares

    def after(self, indices: Tensor, start: Tensor, coordinate: Tensor, change: Tensor) -> Tensor:
        """The bits after single steps: each changes those of one layer.

        Args:
            indices: (s, 5 * layers) integers.
            start, coordinate, change: (k,) which row takes the step, in which coordinate, by -1
                or +1.

        Returns:
            (k,) float64.
        """
        rows = self._rows(indices)
        layer, field = coordinate // len(CHOICES), coordinate % len(CHOICES)
        old = rows[start, layer]
        change = self._table[old + change * self._strides[field]] - self._table[old]
        return (self._table[rows] @ self._shares)[start] + change * self._shares[layer]

    def _rows(self, indices: Tensor) -> Tensor:
        """The row of each layer's choice in :meth:`LayerConfig.space`: (n, layers)."""
        return (indices.unflatten(1, (-1, len(CHOICES))) * self._strides).sum(-1)


def random_configuration(layers: int, generator: torch.Generator) -> list[LayerConfig]:
    """One configuration drawn uniformly from the 432 ** layers."""
    rows = torch.randint(len(LayerConfig.space()), (layers,), generator=generator)
    return [LayerConfig.space()[row] for row in rows.tolist()]


def random_at_bits(layers: int, bits: float, generator: torch.Generator) -> list[LayerConfig]:
    """One random configuration whose layers have so many bits in expectation.

    Each layer draws its choice by itself, with probability p(c) proportional to exp(-lambda
    bits(c)): of all distributions with that mean the one with the most entropy. A uniform draw
    has 4.4 bits, so that many layers hardly ever come out low; this reaches the whole range.

    Args:
        layers: number of layers.
        bits: expected bits per parameter of a layer, scales included.
        generator: of the draw.

    Raises:
        ValueError: no distribution over the choices has that mean.
    """
    table = bits_table()
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
    rows = torch.softmax(-low * table, 0).multinomial(layers, True, generator=generator)
    return [LayerConfig.space()[row] for row in rows.tolist()]
