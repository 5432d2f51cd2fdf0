"""What a layer may be quantized to: a finite set of choices, each a value of every field."""

import itertools
import math
from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from coalora_lib.quantization.linear import with_lora

#: One choice of a space, with the fields as attributes.
Choice = Any
#: One choice for each layer, in the model's order.
Configuration = Sequence[Choice]
#: A weight's shape, or its number of parameters where nothing but that matters.
Shape = Sequence[int] | int


class QuantizedWeight(Protocol):
    """What :meth:`ConfigurationSpace.quantize` returns."""

    @property
    def nbytes(self) -> int:
        """Bytes stored."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight that was quantized."""

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight that is computed with, in its original shape (and dtype by default)."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that is stored, by name."""


class ConfigurationSpace(ABC):
    """The choices for a layer, the cost of each, and how a weight is quantized with it.

    A subclass sets :attr:`name`, what one passes as ``space``, and :attr:`fields`, each field's
    values in their order (a step of one field's index is a move of the search, so neighbours
    should be alike). It defines :meth:`nbytes`, :meth:`bits_per_parameter` and :meth:`quantize`;
    see :func:`~coalora_lib.spaces.register_space`.
    """

    name: str
    fields: Mapping[str, tuple]

    @abstractmethod
    def nbytes(self, choice: Choice, shape: Shape) -> int:
        """All that is stored for a weight of this shape, in bytes."""

    @abstractmethod
    def bits_per_parameter(self, choice: Choice, shape: Shape | None = None) -> float:
        """What a budget in bits counts; without a shape, for a large weight."""

    @abstractmethod
    def quantize(self, weight: Tensor, choice: Choice) -> QuantizedWeight:
        """Quantize a weight of any allowed shape."""

    def quantize_for_inputs(
        self, weight: Tensor, choice: Choice, factor: Tensor, inputs_first: bool = False
    ) -> QuantizedWeight | None:
        """Quantize a weight so that its outputs on some inputs are kept; None if the space knows
        only how to :meth:`quantize`.

        A space that has this has :meth:`assemble` too: what was fitted is saved and moved.

        Args:
            weight: (out, in), or (in, out) with ``inputs_first``.
            factor: K of E[x x^T] = K K^T, (in, in) lower triangular.
        """
        return None

    def assemble(
        self, stored: Mapping[str, Tensor], choice: Choice, shape: Sequence[int], dtype: torch.dtype
    ) -> QuantizedWeight:
        """What :meth:`quantize` returned, from its stored tensors by name.

        Raises:
            ValueError: a tensor is missing, or has another size or dtype than the choice says; or
                weights of this space cannot be read, which is so unless a subclass says how.
        """
        raise ValueError(f"space {self.name!r} has no method that reads its weights from a file")

    @property
    def reads_weights(self) -> bool:
        """Whether a subclass says how :meth:`assemble` reads its weights."""
        return type(self).assemble is not ConfigurationSpace.assemble

    def linear(
        self,
        weight: Any,
        inputs: Tensor,
        bias: Tensor | None = None,
        left: Tensor | None = None,
        right: Tensor | None = None,
    ) -> Tensor:
        """y = Q x + L (R x) + b, (..., in) to (..., out), for a weight that :meth:`quantize`
        returned; it is restored, unless a subclass knows better."""
        output = F.linear(inputs, weight.dequantize(inputs.dtype), bias)
        return with_lora(output, inputs, left, right)

    def allowed(self, choice: Choice, shape: Shape) -> bool:
        """Whether a weight of this shape can be quantized so."""
        return True

    def make_choice(self, *values: Hashable) -> Choice:
        """The choice with these values, one for each field."""
        return _choice_type(f"{type(self).__name__}Choice", tuple(self.fields))(*values)

    def errors(self, weight: Tensor, importance: Tensor | None = None) -> Tensor:
        """The squared error of a floating-point weight under every choice: (choices,) float64.

        sum F (w - w^)^2 with F the importance, of the weight's shape and not negative, or 1. A
        choice that is not allowed gets the error of a lost weight, sum F w^2.
        """
        exact = weight.detach().double()
        factor = 1.0 if importance is None else importance.to(exact)
        found = []
        for choice, usable in zip(self.choices, self.mask(tuple(weight.shape)), strict=True):
            left = exact - self.quantize(weight, choice).dequantize().double() if usable else exact
            found.append((factor * left.square()).sum())
        return torch.stack(found)

    def error_parts(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        pieces: int | None = None,
        sample: float | None = None,
    ) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        """:meth:`errors` in parts to be computed in any order, and added: one by default.

        A space may estimate the errors from so many ``pieces``, or from a ``sample`` of this share
        of the weight; this one is exact whatever is asked.

        Yields:
            Weights that the part stands for, and () to (choices,) float64.
        """
        yield weight.numel(), lambda: self.errors(weight, importance)

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """All choices in lexicographic order of the fields, the last one fastest."""
        combinations = itertools.product(*self.fields.values())
        return tuple(self.make_choice(*values) for values in combinations)

    @cached_property
    def cardinalities(self) -> tuple[int, ...]:
        """How many values each field has."""
        return tuple(len(values) for values in self.fields.values())

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """By how many rows of :attr:`choices` a step of each field's index moves."""
        sizes = self.cardinalities
        return tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))

    @cached_property
    def _stride_row(self) -> Tensor:
        """Made once: every step of a walk asks for it."""
        return torch.tensor(self.strides)

    def finest(self, shape: Shape | None = None) -> Choice:
        """The choice of the most bits that is allowed, nearest to the unquantized weight."""
        bits = self.bits_table(shape)
        if shape is not None:
            bits = bits.masked_fill(~self.mask(shape), -torch.inf)
        return self.choices[int(bits.argmax())]

    def index(self, choice: Choice) -> int:
        """A choice's row in :attr:`choices`; TypeError if it is none of this space."""
        try:
            return self._index[choice]
        except (KeyError, TypeError):
            raise TypeError(
                f"{choice!r:.200} is not a choice of the space {self.name!r}; its fields are "
                f"{', '.join(self.fields)}"
            ) from None

    def indices(self, choice: Choice) -> tuple[int, ...]:
        """The position of each field's value among its values."""
        return tuple(self.to_indices([choice])[0].tolist())

    def to_indices(self, configuration: Configuration) -> Tensor:
        """A configuration as integers: (layers, fields) int64."""
        rows = torch.tensor(self.to_rows(configuration), dtype=torch.int64)
        return rows[:, None] // torch.tensor(self.strides) % torch.tensor(self.cardinalities)

    def from_indices(self, indices: Tensor) -> list[Choice]:
        """The inverse of :meth:`to_indices`, flat or not; ValueError out of range."""
        width = len(self.fields)
        if indices.numel() % width:
            raise ValueError(f"{indices.numel()} indices are not a multiple of {width}")
        rows = indices.reshape(-1, width)
        for column, (name, size) in enumerate(zip(self.fields, self.cardinalities, strict=True)):
            outside = rows[(rows[:, column] < 0) | (rows[:, column] >= size), column]
            if len(outside):
                raise ValueError(f"index {int(outside[0])} of {name} is outside 0..{size - 1}")
        return self.from_rows(self.rows(rows.flatten()).tolist())

    def to_flat(self, configurations: Sequence[Configuration]) -> Tensor:
        """Configurations as the search's integers: (n, layers * fields) int64."""
        flat = [self.to_indices(configuration).flatten() for configuration in configurations]
        return torch.stack(flat) if flat else torch.empty(0, len(self.fields), dtype=torch.int64)

    def rows(self, indices: Tensor) -> Tensor:
        """The row of each layer's choice: (..., layers * fields) integers to (..., layers)."""
        strides = self._stride_row.to(indices.device)
        return (indices.unflatten(-1, (-1, len(self.fields))) * strides).sum(-1)

    def to_rows(self, configuration: Configuration) -> list[int]:
        """A configuration as rows of :attr:`choices`, one for each layer."""
        return [self.index(choice) for choice in configuration]

    def from_rows(self, rows: Sequence[int]) -> list[Choice]:
        """The inverse of :meth:`to_rows`; ValueError out of range."""
        for row in rows:
            if not 0 <= row < len(self.choices):
                raise ValueError(f"choice {row} is outside 0..{len(self.choices) - 1}")
        return [self.choices[row] for row in rows]

    def bits_table(self, shape: Shape | None = None) -> Tensor:
        """Bits per parameter of every choice: (choices,) float64."""
        return self._table("bits", shape, self.bits_per_parameter, torch.float64)

    def allowed_bits(self, shape: Shape) -> Tensor:
        """:meth:`bits_table`, infinite where a weight of this shape may not take the choice."""
        return self.bits_table(shape).masked_fill(~self.mask(shape), torch.inf)

    def bytes_table(self, shape: Shape) -> Tensor:
        """Bytes stored under every choice: (choices,) int64."""
        return self._table("bytes", shape, self.nbytes, torch.int64)

    def mask(self, shape: Shape) -> Tensor:
        """Which choices a weight of this shape may take: (choices,) bool."""
        return self._table("allowed", shape, self.allowed, torch.bool)

    def mean_bits(self, configuration: Configuration, shapes: Sequence[Shape]) -> float:
        """A model's bits per parameter: the layers' bits weighted by their sizes."""
        if len(configuration) != len(shapes):
            raise ValueError(f"{len(configuration)} choices for {len(shapes)} layers")
        sizes = [parameters(shape) for shape in shapes]
        stored = sum(
            self.bits_per_parameter(choice, shape) * size
            for choice, shape, size in zip(configuration, shapes, sizes, strict=True)
        )
        return stored / sum(sizes)

    @cached_property
    def _index(self) -> dict[Choice, int]:
        return {choice: row for row, choice in enumerate(self.choices)}

    @cached_property
    def _tables(self) -> dict[tuple[str, Shape | None], Tensor]:
        return {}

    def _table(self, name: str, shape: Shape | None, entry: Callable, dtype: torch.dtype) -> Tensor:
        """One number for every choice, made once for each shape; not to be written to."""
        key = name, shape if isinstance(shape, int) or shape is None else tuple(shape)
        if key not in self._tables:
            found = [entry(choice, shape) for choice in self.choices]
            self._tables[key] = torch.tensor(found, dtype=dtype)
        return self._tables[key]


@cache
def _choice_type(name: str, fields: tuple[str, ...]) -> type:
    """A named tuple. Pickle finds a class by its module, where this one is not, so each choice says
    how to make it: models and configurations are pickled, and sent to other processes."""

    def reduced(choice: tuple) -> tuple:
        return _restored_choice, (name, fields, tuple(choice))

    return type(name, (namedtuple(name, fields),), {"__slots__": (), "__reduce__": reduced})


def _restored_choice(name: str, fields: tuple[str, ...], values: tuple) -> Choice:
    return _choice_type(name, fields)(*values)


def parameters(shape: Shape) -> int:
    """The number of weights of a shape."""
    return shape if isinstance(shape, int) else math.prod(shape)


_SPACES: dict[str, ConfigurationSpace] = {}


def register_space(space: ConfigurationSpace) -> ConfigurationSpace:
    """Make a space known by its name, and return it.

    Raises:
        TypeError: it is not a ConfigurationSpace.
        ValueError: another space has the name, or a field has no values or one twice.
    """
    if not isinstance(space, ConfigurationSpace):
        raise TypeError(f"{space!r} is not a ConfigurationSpace")
    if _SPACES.get(space.name, space) is not space:
        raise ValueError(f"a space named {space.name!r} is registered already")
    for field, values in space.fields.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"field {field!r} of {space.name!r} needs distinct values: {values}")
    _SPACES[space.name] = space
    return space


def get_space(space: str | ConfigurationSpace) -> ConfigurationSpace:
    """The space of a name, ValueError if none has it; a space as it is."""
    if isinstance(space, ConfigurationSpace):
        return space
    if not isinstance(space, str) or space not in _SPACES:
        raise ValueError(f"space={space!r:.80} is not known; allowed: {', '.join(_SPACES)}")
    return _SPACES[space]


def spaces() -> tuple[str, ...]:
    """The names of the registered spaces."""
    return tuple(_SPACES)
