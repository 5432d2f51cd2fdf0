"""The pieces a configuration changes in a LoRA layer: its factors and the frozen weight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coalora_lib.configuration import LayerConfig
from coalora_lib.decomposition import truncated_svd
from coalora_lib.quantization import QuantizedTensor, quantize


class AdjustedFactor(nn.Linear):
    """A LoRA factor that may stand in for another one, and have a bias.

    It takes the place of PEFT's ``lora_A`` (the paper's L2) or ``lora_B`` (L1) and keeps its
    parameter's name. Without an adjustment and a shift it is that layer exactly.

    Args:
        factor: PEFT's layer; its weight is taken over, not copied.

    Attributes:
        adjusted: what the current configuration has instead of the weight, of its shape: of L2,
            (I + U) L2.
        shift: the bias under the current configuration, (out_features,): of L2, v; of L1, the
            correction of the mean output.
    """

    def __init__(self, factor: nn.Linear) -> None:
        super().__init__(factor.in_features, factor.out_features, bias=False, device="meta")
        self.weight = factor.weight
        self.adjusted: Tensor | None = None
        self.shift: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, *current(self))


def current(factor: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that a LoRA factor computes with now, adjusted or PEFT's own."""
    if not isinstance(factor, AdjustedFactor):
        return factor.weight, factor.bias
    weight = factor.weight if factor.adjusted is None else factor.adjusted
    return weight, factor.shift


@dataclass(frozen=True)
class CompactWeight:
    """A layer under one choice, as small as it is stored.

    Attributes:
        quantized: Q.
        left, right: (rows, k) and (k, columns), a frozen low-rank term; None without one. In the
            layout of the stored weight, which for GPT-2's Conv1D is (in, out).
    """

    quantized: QuantizedTensor
    left: Tensor | None = None
    right: Tensor | None = None

    def restore(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight that the layer computes with: Q, plus the low-rank term.

        Args:
            dtype: of the result, rounded to once; the pre-trained weight's by default.
        """
        if self.left is None:
            return self.quantized.dequantize(dtype)
        weight = self.quantized.dequantize().addmm_(self.left, self.right)
        return weight if dtype is None else weight.to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes taken."""
        low_rank = 0 if self.left is None else self.left.nbytes + self.right.nbytes
        return self.quantized.nbytes + low_rank


class WeightCache:
    """The weights of (layer, choice) pairs seen lately: de-quantized, and packed behind that.

    Switching a layer to a choice seen before is a look-up while its de-quantized weight is held,
    and a de-quantization while only its packed form is. When the cache is full, the de-quantized
    weights used longest ago go first, then the packed ones.

    Args:
        weights: the pre-trained weight of each layer.
        limit: bytes the cache may hold of both kinds. The newest weight is handed out whatever
            its size; a limit of 0 holds nothing.
        scheme: the code book.
        residual_rank: k > 0 adds SVD_k(W - Q), frozen, to every quantized weight.
        mean_inputs: E[x] of each layer, (in,), for :meth:`correction`.
        transposed: weights are (in, out), as in GPT-2's Conv1D.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        limit: int,
        scheme: str = "nf",
        residual_rank: int = 0,
        mean_inputs: Mapping[str, Tensor] | None = None,
        transposed: bool = False,
    ) -> None:
        self.weights = dict(weights)
        self.mean_inputs = {} if mean_inputs is None else dict(mean_inputs)
        self.transposed = transposed
        self.limit = limit
        self.scheme = scheme
        self.residual_rank = residual_rank
        self.held = 0
        self._restored: OrderedDict[tuple, nn.Parameter] = OrderedDict()
        self._compact: OrderedDict[tuple[str, LayerConfig], CompactWeight] = OrderedDict()
        # An output's worth each, small beside the weights, so all are kept.
        self._corrections: dict[tuple[str, LayerConfig], Tensor] = {}

    def get(
        self, layer: str, config: LayerConfig, dtype: torch.dtype | None = None
    ) -> nn.Parameter:
        """The layer's weight under ``config``, frozen; by default in the pre-trained dtype."""
        dtype = dtype or self.weights[layer].dtype
        key = layer, config, dtype
        if key in self._restored:
            self._restored.move_to_end(key)
            return self._restored[key]
        weight = nn.Parameter(self.compact(layer, config).restore(dtype), requires_grad=False)
        self._hold(self._restored, key, weight)
        return weight

    def compact(self, layer: str, config: LayerConfig) -> CompactWeight:
        """The same weight in its stored form."""
        key = layer, config
        if key in self._compact:
            self._compact.move_to_end(key)
            return self._compact[key]
        weight = self.weights[layer]
        quantized = quantize(weight, config, self.scheme)
        entry = CompactWeight(quantized)
        if self.residual_rank:
            rest = weight.float() - quantized.dequantize().float()
            left, right = truncated_svd(rest, self.residual_rank)
            entry = CompactWeight(quantized, left.to(weight.dtype), right.to(weight.dtype))
        self._hold(self._compact, key, entry)
        return entry

    def correction(self, layer: str, config: LayerConfig) -> Tensor:
        """What quantization takes from the mean output, (W - Q) E[x]: (out,)."""
        key = layer, config
        if key not in self._corrections:
            weight = self.weights[layer]
            wide = torch.promote_types(weight.dtype, torch.float32)
            lost = weight.to(wide) - self.compact(layer, config).restore().to(wide)
            mean = self.mean_inputs[layer].to(lost)
            self._corrections[key] = mean @ lost if self.transposed else lost @ mean
        return self._corrections[key]

    def _hold(self, entries: OrderedDict, key: tuple, entry: nn.Parameter | CompactWeight) -> None:
        entries[key] = entry
        self.held += entry.nbytes
        for kind in (self._restored, self._compact):
            while self.held > self.limit and kind:
                _, dropped = kind.popitem(last=False)
                self.held -= dropped.nbytes

    def clear(self) -> None:
        """Let go of everything but the pre-trained weights."""
        self._restored.clear()
        self._compact.clear()
        self._corrections.clear()
        self.held = 0

    def convert(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the pre-trained weights; what was held in the old form is dropped."""
        converted = {layer: function(weight) for layer, weight in self.weights.items()}
        if any(converted[layer] is not self.weights[layer] for layer in converted):
            self.clear()
        self.weights = converted
        self.mean_inputs = {layer: function(mean) for layer, mean in self.mean_inputs.items()}
