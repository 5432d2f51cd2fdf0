"""A configuration's adapter as plain PEFT: nothing of this library is needed to load it.

Once the configuration is fixed, (I + U) L2 is a matrix of L2's shape, so what is left is LoRA. A
frozen residual term R1 R2 joins as further columns and rows, and L1 v and the correction of the
mean output are a bias of ``lora_B``:

    lora_A = [(I + U) L2; R2]    lora_B = [L1, (r / alpha) R1]
    bias = L1 v + (r / alpha) (W - Q) E[x]
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from coalora_lib.configuration import LayerConfig
from coalora_lib.files import atomic_folder
from coalora_lib.quantization import save_quantized

if TYPE_CHECKING:
    from coalora_lib.adapter.model import CoaLora, ConfigurationLike

#: What may be written beside the adapter.
WEIGHTS = (None, "packed", "base_model")


@torch.no_grad()
def export_peft_adapter(
    model: CoaLora,
    folder: str | Path,
    configuration: ConfigurationLike | None = None,
    weights: str | None = None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors for one configuration.

    ``PeftModel.from_pretrained(base, folder)`` reads them onto the model quantized under the same
    configuration.

    Args:
        model: left as it is.
        folder: new, empty, or an earlier export, which is replaced.
        configuration: as for :meth:`CoaLora.set_configuration`; the current one by default.
        weights: "packed" adds quantized.safetensors, which
            :func:`coalora_lib.quantization.load_quantized` reads; "base_model" adds a folder of
            that name with the quantized weights restored, which transformers reads.

    Raises:
        ValueError: no configuration is given or set, it does not fit the model, or ``weights`` is
            not known.
        FileExistsError: the folder holds something else.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is not known; allowed: {WEIGHTS}")
    configuration = model.configuration if configuration is None else configuration
    if configuration is None:
        raise ValueError("no configuration is set, and none is given: there is nothing to export")
    resolved = model.resolve(configuration)
    settings = deepcopy(model.model.peft_config["default"])
    rank = model.settings.rank + model.settings.frozen_rank
    settings.r = rank
    alpha = model.scaling * rank
    settings.lora_alpha = int(alpha) if alpha == int(alpha) else alpha
    shifted = model.settings.configuration_aware and model.settings.output_bias
    settings.lora_bias = shifted or model.settings.bias_correction
    settings.inference_mode = True
    state = adapter_state(model, resolved)
    with atomic_folder(folder, "adapter_config.json") as partial:
        settings.save_pretrained(str(partial))
        save_file(state, partial / "adapter_model.safetensors", {"format": "pt"})
        compact = model.compact_weights(resolved) if weights else {}
        if weights == "packed":
            packed = {name: weight.quantized for name, weight in compact.items()}
            save_quantized(partial / "quantized.safetensors", packed)
        elif weights == "base_model":
            restored = {name: weight.quantized.dequantize() for name, weight in compact.items()}
            _save_base(model, partial / "base_model", restored)
    return Path(folder)


def adapter_state(model: CoaLora, configuration: list[LayerConfig]) -> dict[str, Tensor]:
    """The tensors of the adapter file, under PEFT's names."""
    state = get_peft_model_state_dict(model.model, save_embedding_layers=False)
    factors = shifts = [None] * len(model.layer_names)
    if model.hypernetwork is not None:
        adjustment = model.adjustments(configuration)
        factors = model.adjusted_factors(adjustment)
        shifts = shifts if adjustment.bias is None else adjustment.bias
    corrections = [None] * len(model.layer_names)
    if model.settings.bias_correction:
        corrections = model.corrections(configuration)
    compact = model.compact_weights(configuration) if model.settings.frozen_rank else {}
    inner = model.model.get_base_model()
    for name, factor, shift, correction in zip(
        model.layer_names, factors, shifts, corrections, strict=True
    ):
        prefix = f"base_model.model.{name}"
        l1 = state[f"{prefix}.lora_B.weight"]
        l2 = state[f"{prefix}.lora_A.weight"] if factor is None else factor
        biases = [l1 @ shift] if shift is not None else []
        biases += [correction] if correction is not None else []
        if biases:
            state[f"{prefix}.lora_B.bias"] = sum(biases)
        if name in compact:
            left, right = compact[name].left, compact[name].right
            if isinstance(inner.get_submodule(name).base_layer, Conv1D):
                left, right = right.T, left.T
            l1 = torch.cat([l1, left.to(l1) / model.scaling], dim=1)
            l2 = torch.cat([l2, right.to(l2)])
        state[f"{prefix}.lora_B.weight"], state[f"{prefix}.lora_A.weight"] = l1, l2
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _save_base(model: CoaLora, folder: Path, restored: dict[str, Tensor]) -> None:
    """The transformers model without adapters, with these weights in the adapted layers."""
    inner = model.model.get_base_model()
    state = {}
    for name, tensor in inner.state_dict().items():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        name = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        layer, _, part = name.rpartition(".")
        value = restored[layer] if layer in restored and part == "weight" else tensor
        state[name] = value.detach().cpu()
    inner.save_pretrained(folder, state_dict=state)
