"""The two pieces a configuration changes in a LoRA layer: the A factor and the frozen weight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from coalora_lib.configuration import LayerConfig
from coalora_lib.quantization import quantize


class AdjustedLoraA(nn.Linear):
    """A LoRA A factor (the paper's L2) read through the adjustment: x -> (I + U) A x.

    It takes the place of PEFT's ``lora_A`` and keeps its parameter's name. Without an adjustment
    it is that layer exactly.

    Args:
        factor: PEFT's layer; its weight (r, in_features) is taken over, not copied.
    """

    def __init__(self, factor: nn.Linear) -> None:
        super().__init__(factor.in_features, factor.out_features, bias=False, device="meta")
        self.weight = factor.weight
        self.adjustment: Tensor | None = None  # U of the current configuration, (r, r)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.adjustment is None:
            return F.linear(inputs, self.weight)
        # On the weight side: r^2 * in multiplications, whatever the number of tokens.
        return F.linear(inputs, self.weight + self.adjustment @ self.weight)


class WeightCache:
    """De-quantized weights by (layer, choice), least recently used out first.

    Switching a layer to a choice seen before is a look-up, so that training on a set of
    configurations quantizes each (layer, choice) once.

    Args:
        weights: the pre-trained weight of each layer.
        limit: bytes the cache may hold; the newest weight is kept whatever its size.
    """

    def __init__(self, weights: Mapping[str, Tensor], limit: int) -> None:
        self.weights = dict(weights)
        self.limit = limit
        self.held = 0
        self._entries: OrderedDict[tuple[str, LayerConfig], nn.Parameter] = OrderedDict()

    def get(self, layer: str, config: LayerConfig) -> nn.Parameter:
        """The layer's weight after quantization under ``config``, frozen."""
        key = layer, config
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        weight = quantize(self.weights[layer], config).dequantize()
        entry = nn.Parameter(weight, requires_grad=False)
        self._entries[key] = entry
        self.held += weight.nbytes
        while self.held > self.limit and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self.held -= dropped.nbytes
        return entry

    def convert(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the pre-trained weights; what was held in the old form is dropped."""
        converted = {layer: function(weight) for layer, weight in self.weights.items()}
        if any(converted[layer] is not self.weights[layer] for layer in converted):
            self._entries.clear()
            self.held = 0
        self.weights = converted
