"""The methods CoA-LoRA is measured against.

All have LoRA in the same layers, with the same rank and scaling, and the head trained in full; they
differ in the frozen weights behind LoRA. Shared-LoRA, and QLoRA at mixed bits, are a
:class:`~coalora_lib.adapter.CoaLora` with ``adjuster="none"``.
"""

from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coalora_lib.adapter.lora import adaptable_layers, attach_lora
from coalora_lib.decomposition import lowrank_plus_quantized
from coalora_lib.spaces import Configuration, ConfigurationSpace, get_space


def lora(base_model: PreTrainedModel, rank: int = 16, alpha: float = 16) -> PeftModel:
    """PEFT LoRA on the unquantized model, which is taken over and changed."""
    return attach_lora(base_model, rank, alpha)


@torch.no_grad()
def lq_lora(
    base_model: PreTrainedModel,
    configuration: Configuration,
    rank: int = 16,
    alpha: float = 16,
    importance: Mapping[str, Tensor] | None = None,
    space: str | ConfigurationSpace = "nf",
    svd: str = "randomized",
) -> PeftModel:
    """LQ-LoRA (arXiv 2311.12023): every weight split into a quantized and a trained low-rank part.

    The model is taken over and changed, and starts closer to the unquantized one than LoRA does.

    Args:
        configuration: of the quantized parts, one for each of the model's adaptable layers.
        importance: layer to (out, in) weights of the error; see
            :func:`~coalora_lib.training.fisher_importance`.
        svd: see :func:`~coalora_lib.decomposition.lowrank_plus_quantized`.

    Raises:
        ValueError: the configuration has another number of layers.
    """
    space, names = get_space(space), adaptable_layers(base_model)
    if len(configuration) != len(names):
        raise ValueError(f"{len(configuration)} choices for {len(names)} layers")
    model = attach_lora(base_model, rank, alpha)
    for name, choice in zip(names, configuration, strict=True):
        layer = base_model.get_submodule(name)
        weight = layer.base_layer.weight
        transposed = isinstance(layer.base_layer, Conv1D)
        parts = lowrank_plus_quantized(
            weight.T if transposed else weight,
            choice,
            rank,
            space,
            None if importance is None else importance[name],
            svd,
        )
        restored = parts.quantized.dequantize()
        weight.copy_(restored.T if transposed else restored)
        scale = layer.scaling["default"] ** 0.5
        layer.lora_B["default"].weight.copy_(parts.l1 / scale)
        layer.lora_A["default"].weight.copy_(parts.l2 / scale)
    return model


def full_fine_tuning(base_model: PreTrainedModel) -> PreTrainedModel:
    """Every parameter of the model trained, nothing quantized."""
    return base_model.requires_grad_(True)
