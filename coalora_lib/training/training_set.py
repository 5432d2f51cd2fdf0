"""The configurations that a run trains over, and how those of a step are drawn."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.resolving import ConfigurationLike
from coalora_lib.spaces import Configuration


class Drawn(NamedTuple):
    """A configuration that a pass trains under, None without, and what an error calls it."""

    configuration: Configuration | None = None
    label: str = "no configuration"


class TrainingSet:
    """The set C of the paper's equation 5; the expectation over it is taken by uniform draws.

    ``configurations`` holds what :meth:`~coalora_lib.adapter.CoaLora.set_configuration` takes, and
    then each layer by layer; None for a model without. The state of ``generator`` is the position
    of the draws. ValueError or TypeError for what does not fit the model, its number named.
    """

    def __init__(
        self, model: nn.Module, configurations: Iterable[ConfigurationLike] | None, seed: int
    ) -> None:
        self._model = model
        self.generator = torch.Generator().manual_seed(seed)
        self.configurations: list[Configuration] | None = None
        if configurations is not None:
            self.configurations = _spelled_out(model, configurations)

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
        if self.configurations is None:
            return None
        return self._model.space.to_flat(self.configurations)

    def replace(self, flat: Tensor) -> None:
        """Take the configurations of :meth:`flat`'s form instead."""
        self.configurations = [self._model.space.from_indices(row) for row in flat]


def _spelled_out(
    model: nn.Module, configurations: Iterable[ConfigurationLike]
) -> list[Configuration]:
    if not isinstance(configurations, Iterable):
        raise TypeError(
            f"configurations={configurations!r} is not a set; allowed: a list of "
            "configurations, each "
            "as set_configuration takes it, or None"
        )
    if not isinstance(model, CoaLora):
        raise ValueError(f"a {type(model).__name__} has no configurations to train over; give None")
    found: list[Configuration] = []
    for number, configuration in enumerate(configurations):
        try:
            found.append(model.resolve(configuration))
        except (TypeError, ValueError) as error:
            raise type(error)(f"configuration {number} of the set: {error}") from error
        if model.layers.replaced(found[-1]):
            raise ValueError(
                f"configuration {number} of the set: fitted terms replace LoRA for "
                "it, so LoRA cannot be trained there"
            )
    if not found:
        raise ValueError("the set of training configurations is empty")
    return found


@contextmanager
def configuration_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards the model has the configuration it had before, or none as before."""
    before = model.configuration if isinstance(model, CoaLora) else None
    try:
        yield
    finally:
        if isinstance(model, CoaLora):
            model.set_configuration(before)
