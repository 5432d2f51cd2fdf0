"""The configurations that a run trains over, and the draw of those of a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.resolving import ConfigurationLike
from coalora_lib.spaces import Configuration, ConfigurationSpace


@dataclass(frozen=True)
class Drawn:
    """A configuration that a pass trains under.

    Attributes:
        configuration: of every layer; None for a model without configurations.
        label: what an error calls it.
    """

    configuration: Configuration | None = None
    label: str = "no configuration"


class TrainingSet:
    """The set C of the paper's equation 5; the expectation over it is taken by uniform draws.

    Args:
        configurations: of every layer each; None for a model without configurations.
        space: that they are of; None without them.
        seed: of the draws.

    Attributes:
        configurations: the set; the search replaces it.
        generator: its state says where the draws stand.
    """

    def __init__(
        self,
        configurations: Sequence[Configuration] | None,
        space: ConfigurationSpace | None,
        seed: int,
    ) -> None:
        self.configurations = None if configurations is None else list(configurations)
        self._space = space
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> list[Drawn]:
        """``count`` configurations, with replacement."""
        if self.configurations is None:
            return [Drawn()] * count
        drawn = torch.randint(len(self.configurations), (count,), generator=self.generator)
        return [
            Drawn(self.configurations[index], f"configuration {index} of the set")
            for index in drawn.tolist()
        ]

    def flat(self) -> Tensor | None:
        """The set as integers, (n, fields * layers) int64; None without configurations."""
        if self.configurations is None or self._space is None:
            return None
        return self._space.to_flat(self.configurations)

    def replace(self, flat: Tensor) -> None:
        """Take the configurations of :meth:`flat`'s form instead."""
        if self._space is None:
            raise ValueError("a model without configurations has no training set to replace")
        self.configurations = [self._space.from_indices(row) for row in flat]


def new_training_set(
    model: nn.Module, configurations: Iterable[ConfigurationLike] | None, seed: int
) -> TrainingSet:
    """The training set with every configuration spelled out layer by layer.

    Args:
        model: to train.
        configurations: each what :meth:`~coalora_lib.adapter.CoaLora.set_configuration` takes;
            None for a model without configurations.
        seed: of the draws.

    Raises:
        ValueError: the set is empty, the model has no configurations, or a configuration is not
            one of this model's (its number is named).
        TypeError: what is given is no set, or one of it is no configuration.
    """
    if configurations is None:
        return TrainingSet(None, None, seed)
    if not isinstance(configurations, Iterable):
        raise TypeError(
            f"configurations={configurations!r} is no set; allowed: a list of configurations, each "
            "as set_configuration takes it, or None"
        )
    if not isinstance(model, CoaLora):
        raise ValueError(f"a {type(model).__name__} has no configurations to train over; give None")
    found = []
    for number, configuration in enumerate(configurations):
        try:
            found.append(model.resolve(configuration))
        except (TypeError, ValueError) as error:
            raise type(error)(f"configuration {number} of the set: {error}") from error
    if not found:
        raise ValueError("the set of training configurations is empty")
    return TrainingSet(found, model.space, seed)


@contextmanager
def configuration_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards the model has the configuration it had before, or none as before."""
    before = model.configuration if isinstance(model, CoaLora) else None
    try:
        yield
    finally:
        if isinstance(model, CoaLora):
            model.set_configuration(before)
