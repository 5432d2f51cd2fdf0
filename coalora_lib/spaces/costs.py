"""Costs of a configuration that are sums over its layers: bits, bytes, latency."""

from collections.abc import Sequence

import torch
from torch import Tensor

from coalora_lib.spaces.space import ConfigurationSpace, Shape, get_space, parameters


class LayerCosts:
    """sum_i n_i t_i(c_i): a table of costs, and a factor for each layer; a cost for the search.

    Args:
        table: (layers, choices) float64, t; infinite where a layer may not take a choice.
        space: whose choices the columns are.
        factors: (layers,) float64, n; one by default.
    """

    def __init__(
        self, table: Tensor, space: str | ConfigurationSpace, factors: Tensor | None = None
    ) -> None:
        self._space = get_space(space)
        layers, choices = table.shape
        if choices != len(self._space.choices):
            raise ValueError(
                f"the table has {choices} columns; {self._space.name!r} has "
                f"{len(self._space.choices)} choices"
            )
        self._table = table.double().flatten()
        self._first = torch.arange(layers) * choices
        self._factors = torch.ones(layers).double() if factors is None else factors.double()
        self._strides = torch.tensor(self._space.strides)

    def __call__(self, indices: Tensor) -> Tensor:
        """(n, layers * fields) integers to (n,) float64 costs."""
        return self._table[self._entries(indices)] @ self._factors

    def changes(self, indices: Tensor, start: Tensor, coordinate: Tensor, change: Tensor) -> Tensor:
        """By how much k single steps change the cost, (k,) float64, without a row for each.

        Row ``start`` of (s, layers * fields) integers takes the step, in a coordinate, by -1 or +1.
        """
        entries = self._entries(indices)
        fields = len(self._strides)
        layer, field = coordinate // fields, coordinate % fields
        old = entries[start, layer]
        difference = self._table[old + change * self._strides[field]] - self._table[old]
        return difference * self._factors[layer]

    def _entries(self, indices: Tensor) -> Tensor:
        """Where each layer's choice stands in the flat table: (n, layers)."""
        return self._space.rows(indices) + self._first


def mean_bits_cost(space: str | ConfigurationSpace, shapes: Sequence[Shape]) -> LayerCosts:
    """Mean bits per parameter of a model, the paper's second objective."""
    space = get_space(space)
    sizes = torch.tensor([parameters(shape) for shape in shapes], dtype=torch.float64)
    tables = torch.stack([space.allowed_bits(shape) for shape in shapes])
    return LayerCosts(tables, space, sizes / sizes.sum())
