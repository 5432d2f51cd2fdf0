"""The ways to give a configuration, and the configuration of the layers that each means."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from coalora_lib.allocation import Constraints, allocate, error_table
from coalora_lib.spaces import Choice, ConfigurationSpace, parameters

#: What :meth:`CoaLora.set_configuration` takes, beside None.
ConfigurationLike = Sequence[Choice] | Mapping[str, Choice] | Constraints | float


class ConfigurationResolver:
    """Turns budgets, constraints and names into one choice for each layer.

    ``errors`` are the (layers, choices) error table where the caller has it. It is measured else,
    when a budget is first asked for: estimated from a sample, or on all weights.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        space: ConfigurationSpace,
        errors: Tensor | None = None,
        estimate: bool = True,
    ) -> None:
        self.names = list(weights)
        self.shapes = [tuple(weight.shape) for weight in weights.values()]
        self.space = space
        # Rows that a layer may not take: looked up per layer and switch.
        self._refused = [
            frozenset((~space.mask(shape)).nonzero()[:, 0].tolist()) for shape in self.shapes
        ]
        self.errors = errors
        self.estimate = estimate
        expected = len(self.names), len(space.choices)
        if errors is not None and tuple(errors.shape) != expected:
            raise ValueError(
                f"errors must be {expected}, layers by choices, got {tuple(errors.shape)}"
            )

    def measured_errors(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The error table, measured now if that was not done before."""
        if self.errors is None:
            self.errors = error_table(weights, self.space, sample=self.estimate)
        return self.errors

    def fewest_bits(self) -> float:
        """The smallest budget that is feasible, in mean bits per parameter."""
        stored = sum(
            parameters(shape) * self.space.allowed_bits(shape).min().item() for shape in self.shapes
        )
        return stored / sum(map(parameters, self.shapes))

    def __call__(
        self, configuration: ConfigurationLike, weights: Mapping[str, Tensor]
    ) -> list[Choice]:
        """The configuration of every layer.

        Args:
            configuration: see :meth:`CoaLora.set_configuration`.
            weights: the pre-trained weights, which a budget's errors are measured on.

        Raises:
            ValueError: the number or the names of the layers differ, a layer may not take its
                choice, or a budget or constraint is not feasible.
            TypeError: what is given is no configuration.
        """
        if isinstance(configuration, Real) and not isinstance(configuration, bool):
            budget: Any = configuration
            configuration = Constraints(budget)
        if isinstance(configuration, Constraints):
            errors = self.measured_errors(weights)
            return allocate(
                errors, self.shapes, space=self.space, names=self.names, **vars(configuration)
            ).configs
        if isinstance(configuration, Mapping):
            configuration = self._in_order(configuration)
        if not isinstance(configuration, Sequence) or isinstance(configuration, str | bytes):
            raise TypeError(
                f"{configuration!r:.200} is not a configuration; allowed: a budget in bits per "
                "parameter, Constraints, or one choice per layer, in order or by name"
            )
        if len(configuration) != len(self.names):
            raise ValueError(f"{len(configuration)} choices for {len(self.names)} layers")
        for number, choice in enumerate(configuration):
            try:
                row = self.space.index(choice)
            except TypeError as error:
                raise TypeError(f"{self.names[number]}: {error}") from None
            if row in self._refused[number]:
                raise ValueError(
                    f"{self.names[number]}: {choice!r} is not allowed for the shape "
                    f"{self.shapes[number]}"
                )
        return list(configuration)

    def _in_order(self, named: Mapping[str, Choice]) -> list[Choice]:
        missing = [name for name in self.names if name not in named]
        unknown = [name for name in named if name not in self.names]
        if missing:
            raise ValueError(f"the configuration lacks {missing[0]!r} ({len(missing)} in all)")
        if unknown:
            raise ValueError(f"this model has no layer {unknown[0]!r:.80} ({len(unknown)} in all)")
        return [named[name] for name in self.names]
