"""The adapted layers of a model: LoRA over quantized weights, switched together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from coalora_lib.adapter.adjusters import Factors
from coalora_lib.adapter.cache import WeightCache
from coalora_lib.adapter.linear import LoraFactor, frozen_copies
from coalora_lib.adapter.quantized import (
    Corrected,
    LayerState,
    PackedWeight,
    QuantizedLinear,
)
from coalora_lib.adapter.together import packed_together
from coalora_lib.adapter.weights import PretrainedWeight, ReadWeights
from coalora_lib.decomposition import truncated_svd
from coalora_lib.spaces import Choice, ConfigurationSpace


class AdaptedLayers:
    """LoRA layers whose frozen weights follow a configuration.

    What is behind and inside each LoRA of the model is replaced. ``quantized`` has the layer behind
    each by name; ``configuration`` is None while the weights are the pre-trained ones. Moments of
    inputs are by name; see :class:`~coalora_lib.adapter.quantized.QuantizedLinear`. ``kept`` are
    the pre-trained weights by name.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        space: ConfigurationSpace,
        cache: WeightCache,
        kept: Mapping[str, PretrainedWeight],
        frozen_rank: int,
        mean_inputs: Mapping[str, Tensor] | None,
        second_moments: Mapping[str, Tensor] | None,
    ) -> None:
        self._loras = [model.get_submodule(name) for name in names]
        self.quantized: dict[str, QuantizedLinear] = {}
        moved: dict[int, Tensor] = {}  # layers that share a second moment go on sharing it
        for name, lora in zip(names, self._loras, strict=True):
            mean = None if mean_inputs is None else mean_inputs[name]
            second = None if second_moments is None else second_moments[name]
            if second is not None:
                second = moved.setdefault(id(second), second.to(lora.base_layer.weight.device))
            layer = QuantizedLinear(
                lora.base_layer, space, cache, frozen_rank, mean, second, kept[name]
            )
            self.quantized[name] = lora.base_layer = layer
            for place in (lora.lora_A, lora.lora_B):
                place["default"] = LoraFactor(place["default"])
        self.cache = cache
        #: What was fitted for whole configurations, by their choices.
        self.fitted: dict[tuple[Choice, ...], list[Corrected]] = {}
        self.configuration: list[Choice] | None = None
        #: Whether LoRA is off, since what was fitted for the configuration is in its place.
        self.lora_off = False
        self._static = False

    @property
    def scaling(self) -> float:
        """alpha / r, the factor on the LoRA output."""
        return self._loras[0].scaling["default"]

    @property
    def pretrained(self) -> Mapping[str, Tensor]:
        """The unquantized weights by name, each read when it is asked for; not to be written to."""
        return ReadWeights({name: layer.kept for name, layer in self.quantized.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights by name."""
        return {name: tuple(layer.kept.shape) for name, layer in self.quantized.items()}

    @property
    def mean_inputs(self) -> dict[str, Tensor]:
        """E[x] of each layer by name; empty without bias correction."""
        found = {name: layer.mean_input for name, layer in self.quantized.items()}
        return {name: mean for name, mean in found.items() if mean is not None}

    @property
    def second_moments(self) -> dict[str, Tensor]:
        """E[x x^T] of each layer by name; empty unless the start is calibrated."""
        found = {name: layer.second_moment for name, layer in self.quantized.items()}
        return {name: second for name, second in found.items() if second is not None}

    def states(self, configuration: Sequence[Choice]) -> Sequence[LayerState]:
        """The current state of each layer: its choice, or its fitted terms."""
        if not self.fitted:  # every switch asks, and to hash a configuration takes longer than that
            return configuration
        return self.fitted.get(tuple(configuration), configuration)

    def replaced(self, configuration: Sequence[Choice]) -> bool:
        """Whether fitted terms replace LoRA."""
        return _in_the_place_of_lora(self.states(configuration))

    def hold_codes(self) -> None:
        """Have fits hold the codes that they were made over, before weights are rounded to another
        dtype: codes of the rounded ones are others. Where a space cannot move them, they change."""
        self._change_fitted(QuantizedLinear.with_codes)

    def move_fitted(self) -> None:
        """Have what was fitted follow the weights to another device or dtype."""
        self._change_fitted(QuantizedLinear.moved)

    def _change_fitted(self, change: Callable[[QuantizedLinear, Corrected], Corrected]) -> None:
        self.fitted = {
            configuration: [
                change(layer, state)
                for layer, state in zip(self.quantized.values(), states, strict=True)
            ]
            for configuration, states in self.fitted.items()
        }

    def packed(self, configuration: Sequence[Choice]) -> dict[str, PackedWeight]:
        """The weights under a configuration by name, as they are stored."""
        found = dict(self.each_packed(configuration))
        return {name: found[name] for name in self.quantized}

    def each_packed(self, configuration: Sequence[Choice]) -> Iterator[tuple[str, PackedWeight]]:
        """:meth:`packed` one by one, in no certain order: nothing but the cache holds them."""
        states = self.states(configuration)
        missing = self._missing(states)
        names = {layer: name for name, layer in self.quantized.items()}
        absent = {layer for layer, _ in missing}
        for layer, state in zip(names, states, strict=True):
            if layer not in absent:
                yield names[layer], layer.packed(state)
        for layer, choice, packed, weight in packed_together(missing):
            layer.take(choice, packed, weight)
            yield names[layer], packed

    def have_codes(self, configuration: Sequence[Choice]) -> bool:
        """Whether codes of a layer were chosen for its inputs, and are not those of its choice."""
        states = self.states(configuration)
        return any(isinstance(s, Corrected) and s.quantized is not None for s in states)

    def have_terms(self, configuration: Sequence[Choice]) -> bool:
        """Whether the weight of every layer has a frozen term."""
        pairs = zip(self.quantized.values(), self.states(configuration), strict=True)
        return all(layer.frozen_rank or isinstance(state, Corrected) for layer, state in pairs)

    def _missing(self, states: Sequence[LayerState | None]) -> list[tuple[QuantizedLinear, Choice]]:
        """The layers whose frozen terms are not held, with their choices."""
        pairs = zip(self.quantized.values(), states, strict=True)
        return [(layer, state) for layer, state in pairs if layer.lacks(state)]

    def _under(
        self, states: Sequence[LayerState | None]
    ) -> Iterator[tuple[QuantizedLinear, LayerState | None, Tensor, Tensor | None]]:
        """Weight and correction of every layer under its state, in no certain order."""
        missing = self._missing(states)
        absent = {layer for layer, _ in missing}
        for layer, state in zip(self.quantized.values(), states, strict=True):
            if layer not in absent:
                yield layer, state, *layer.under(state, self._dtype(layer))
        for layer, choice, packed, weight in packed_together(missing):
            yield layer, choice, *layer.take(choice, packed, weight, self._dtype(layer))

    def _dtype(self, layer: QuantizedLinear) -> torch.dtype | None:
        """Of what a weight is copied to, so that one kernel copies all; else its own."""
        return layer.weight.dtype if self._static else None

    # Tensors made under inference_mode could not be trained over later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def switch(self, configuration: Sequence[Choice] | None) -> None:
        """Move the weights and corrections of a configuration in; None: the pre-trained weights."""
        layers = self.quantized.values()
        self.configuration = None if configuration is None else list(configuration)
        states: Sequence[LayerState | None] = [None] * len(layers)
        if configuration is not None:
            states = self.states(configuration)
        before, self.lora_off = self.lora_off, _in_the_place_of_lora(states)
        if before and not self.lora_off:
            self.use(self.factors())
        if not self._static:
            for layer, state, weight, correction in self._under(states):
                layer.switch(state, weight, correction)
            return
        places, values = [], []
        for layer, _, weight, correction in self._under(states):
            if layer.kept.apart:  # at once: to hold all of them would take the model's memory again
                layer.weight.copy_(weight)
            else:
                places.append(layer.weight)
                values.append(weight)
            if layer.correction is not None:
                places.append(layer.correction)
                values.append(layer.no_correction() if correction is None else correction)
        torch._foreach_copy_(places, values)

    @contextmanager
    def static_memory(self) -> Iterator[None]:
        """While it lasts, a configuration is copied to where the one before it was.

        That costs a copy, and captured CUDA graphs see the new weights.
        """
        try:
            with frozen_copies(self._loras):
                with torch.inference_mode(False), torch.no_grad():
                    for layer in self.quantized.values():
                        layer.own_memory(corrected=bool(self.fitted))
                self._static = True
                yield
        finally:
            self._static = False
            self.switch(self.configuration)

    def factors(self) -> list[Factors]:
        """LoRA's own factors."""
        return [
            Factors(lora.lora_B["default"].weight, lora.lora_A["default"].weight)
            for lora in self._loras
        ]

    def no_factors(self) -> list[Factors]:
        """Those of a LoRA that does nothing."""
        return [
            Factors(torch.zeros_like(l1, requires_grad=False), l2.detach())
            for l1, l2, _ in self.factors()
        ]

    def use(self, factors: Sequence[Factors]) -> None:
        """Have the LoRA layers compute with these factors."""
        for lora, (l1, l2, shift) in zip(self._loras, factors, strict=True):
            lora.lora_B["default"].take(l1)
            lora.lora_A["default"].take(l2, shift)

    @torch.no_grad()
    def start_from_residual(self, configuration: Sequence[Choice], rank: int) -> None:
        """(alpha / r) L1 L2 = SVD_r(W - Q) under one configuration, the paper's start."""
        for layer, choice, (l1, l2, _) in zip(
            self.quantized.values(), configuration, self.factors(), strict=True
        ):
            rest = layer.lost(layer.packed(choice).restore())
            left, right = truncated_svd(rest.T if layer.transposed else rest, rank)
            l1.copy_(left / self.scaling**0.5)
            l2.copy_(right / self.scaling**0.5)


def _in_the_place_of_lora(states: Sequence[LayerState | None]) -> bool:
    """Of all layers or of none."""
    return isinstance(states[0], Corrected) and states[0].replaces
