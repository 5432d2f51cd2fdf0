"""The methods CoA-LoRA is measured against.

All have LoRA in the same layers, with the same rank and scaling, and the head trained in full; they
differ in the frozen weights behind LoRA. Shared-LoRA, and QLoRA at mixed bits with our quantizer,
are a :class:`~coalora_lib.adapter.CoaLora` with ``configuration_aware=False``, trained on the whole
set or on one configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coalora_lib.adapter import AdapterSettings, CoaLora
from coalora_lib.adapter.layers import AdjustedFactor
from coalora_lib.adapter.lora import adaptable_layers, attach_lora
from coalora_lib.configuration import CHOICES, LayerConfig
from coalora_lib.decomposition import lowrank_plus_quantized


def lora(base_model: PreTrainedModel, rank: int = 16, alpha: float = 16) -> PeftModel:
    """PEFT LoRA on the unquantized model: what quantization is to lose nothing against.

    Args:
        base_model: taken over and changed.
        rank, alpha: of the LoRA factors.
    """
    return attach_lora(base_model, rank, alpha)


@torch.no_grad()
def lq_lora(
    base_model: PreTrainedModel,
    configuration: Sequence[LayerConfig],
    rank: int = 16,
    alpha: float = 16,
    importance: Mapping[str, Tensor] | None = None,
    scheme: str = "nf",
    svd: str = "randomized",
) -> PeftModel:
    """LQ-LoRA (arXiv 2311.12023): every weight split into a quantized and a trained low-rank part.

    The factors start from the split, so that the model starts closer to the unquantized one.

    Args:
        base_model: taken over and changed.
        configuration: of the quantized parts, one for each of its adaptable layers.
        rank, alpha: of the LoRA factors.
        importance: layer to (out, in) weights of the error; see
            :func:`~coalora_lib.training.fisher_importance`.
        scheme, svd: see :func:`~coalora_lib.decomposition.lowrank_plus_quantized`.

    Raises:
        ValueError: the configuration has another number of layers.
    """
    names = adaptable_layers(base_model)
    if len(configuration) != len(names):
        raise ValueError(f"{len(configuration)} layer configurations for {len(names)} layers")
    model = attach_lora(base_model, rank, alpha)
    for name, config in zip(names, configuration, strict=True):
        layer = base_model.get_submodule(name)
        weight = layer.base_layer.weight
        transposed = isinstance(layer.base_layer, Conv1D)
        parts = lowrank_plus_quantized(
            weight.T if transposed else weight,
            config,
            rank,
            scheme,
            None if importance is None else importance[name],
            svd,
        )
        restored = parts.quantized.dequantize()
        weight.copy_(restored.T if transposed else restored)
        scale = layer.scaling["default"] ** 0.5
        layer.lora_B["default"].weight.copy_(parts.l1 / scale)
        layer.lora_A["default"].weight.copy_(parts.l2 / scale)
    return model


class BitWidthLora(CoaLora):
    """Every layer keeps an adapter for each bit width, and the configuration picks one of them.

    As in LLM-QFA (Yi et al. 2025, "One QuantLLM for ALL", arXiv 2405.20202), where the bits
    are all that a configuration chooses: of our five fields it reads the first. It stores as many
    times LoRA's factors as there are bit widths. A baseline: it is trained and evaluated, not
    exported.

    Args:
        base_model: taken over and changed.
        rank, alpha: of each of the adapters.
        errors: the (layers, 432) error table, where the caller has it.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        rank: int = 16,
        alpha: float = 16,
        errors: Tensor | None = None,
    ) -> None:
        settings = AdapterSettings(rank=rank, alpha=alpha, configuration_aware=False)
        super().__init__(base_model, settings, errors)
        widths = len(CHOICES["weight_bits"])
        self.banks = nn.ModuleDict()
        for place, factors in self._places().items():
            self.banks[place] = nn.ParameterList(
                nn.Parameter(factor.weight.detach().repeat(widths, 1, 1)) for factor in factors
            )
            for factor in factors:
                factor.weight.requires_grad_(False)

    def _places(self) -> dict[str, list[AdjustedFactor]]:
        return {"lora_A": self._factors, "lora_B": self._outputs}

    def _adapt(self, *_) -> None:
        """Hand every layer the factors for its bits, before the transformers model's forward."""
        if self._indices is None:
            return
        for place, factors in self._places().items():
            picked = self._indices[:, :1].unbind()
            for factor, bank, row in zip(factors, self.banks[place], picked, strict=True):
                factor.adjusted = bank.index_select(0, row)[0]


def full_fine_tuning(base_model: PreTrainedModel) -> PreTrainedModel:
    """Every parameter trained, nothing quantized.

    Args:
        base_model: taken over and changed.
    """
    return base_model.requires_grad_(True)
