"""A configuration's adapter as plain PEFT: nothing of this library is needed to load it.

Once the configuration is fixed, (I + U) L2 is a matrix of L2's shape, so what is left is LoRA. A
frozen residual term R1 R2 joins as further columns and rows, and L1 v and the correction of the
mean output are a bias of ``lora_B``:

    lora_A = [(I + U) L2; R2]    lora_B = [L1, (r / alpha) R1]
    bias = L1 v + (r / alpha) (W - Q) E[x]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from coalora_lib.adapter.adjusters import Factors
from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.quantized import PackedWeight
from coalora_lib.files import atomic_folder
from coalora_lib.quantization import QuantizedTensor, save_quantized
from coalora_lib.spaces import Choice

#: What may be written beside the adapter.
WEIGHTS = (None, "packed", "base_model")


@dataclass(frozen=True)
class FixedLayer:
    """A layer under the configuration that is exported.

    Attributes:
        name: path in the transformers model.
        factors: L1, (I + U) L2 and v.
        correction: (out,), (W - Q) E[x]; or None.
        weight: as it is stored.
        transposed: the weight is (in, out), as in GPT-2's Conv1D.
    """

    name: str
    factors: Factors
    correction: Tensor | None
    weight: PackedWeight
    transposed: bool

    @property
    def residual(self) -> tuple[Tensor, Tensor] | None:
        """R1, (out, k), and R2, (k, in), of the frozen term, if there is one."""
        left, right = self.weight.left, self.weight.right
        if left is None or right is None:
            return None
        return (right.T, left.T) if self.transposed else (left, right)

    def tensors(self, scaling: float) -> dict[str, Tensor]:
        """PEFT's tensors by the last part of their names; ``scaling`` is alpha / r."""
        l1, l2, shift = self.factors
        biases = [] if shift is None else [l1 @ shift]
        if self.correction is not None:
            biases.append((self.correction / scaling).to(l1.dtype))
        found = {"lora_B.bias": torch.stack(biases).sum(0)} if biases else {}
        if self.residual is not None:
            left, right = self.residual
            l1 = torch.cat([l1, left.to(l1) / scaling], dim=1)
            l2 = torch.cat([l2, right.to(l2)])
        return found | {"lora_B.weight": l1, "lora_A.weight": l2}


def fixed_layers(
    layers: AdaptedLayers, factors: Sequence[Factors], configuration: Sequence[Choice]
) -> list[FixedLayer]:
    """Every adapted layer under a configuration.

    Args:
        layers: of the model.
        factors: of each of them under the configuration.
        configuration: one choice for each.
    """
    return [
        FixedLayer(name, each, layer.correction_of(choice), layer.packed(choice), layer.transposed)
        for (name, layer), each, choice in zip(
            layers.quantized.items(), factors, configuration, strict=True
        )
    ]


def packed_tensors(weights: Mapping[str, PackedWeight]) -> dict[str, QuantizedTensor]:
    """What :func:`~coalora_lib.quantization.save_quantized` writes of some weights.

    Raises:
        ValueError: the space's weights have no packed file; a layer is named.
    """
    found = {}
    for name, weight in weights.items():
        if not isinstance(weight.quantized, QuantizedTensor):
            raise ValueError(
                f"{name} is a {type(weight.quantized).__name__}, for which there is no packed "
                "file; allowed: weights='base_model'"
            )
        found[name] = weight.quantized
    return found


def write_adapter(
    model: PeftModel, layers: Sequence[FixedLayer], folder: str | Path, weights: str | None
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors for one configuration.

    Args:
        model: the PEFT model, left as it is.
        layers: all that are adapted.
        folder: new, empty, or an earlier export, which is replaced.
        weights: what to write beside it, one of :data:`WEIGHTS`.

    Raises:
        ValueError: ``weights`` is not known, or not to be had in the model's space.
        FileExistsError: the folder holds something else.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is not known; allowed: {WEIGHTS}")
    stored = {layer.name: layer.weight for layer in layers}
    packed = packed_tensors(stored) if weights == "packed" else {}
    settings = deepcopy(model.peft_config["default"])
    scaling = settings.lora_alpha / settings.r
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    for layer in layers:
        prefix = f"base_model.model.{layer.name}"
        state |= {f"{prefix}.{name}": t for name, t in layer.tensors(scaling).items()}
    settings.r = len(state[f"base_model.model.{layers[0].name}.lora_A.weight"])
    alpha = scaling * settings.r
    settings.lora_alpha = int(alpha) if alpha == int(alpha) else alpha
    settings.lora_bias = any(name.endswith("lora_B.bias") for name in state)
    settings.inference_mode = True
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_folder(folder, "adapter_config.json") as partial:
        settings.save_pretrained(str(partial))
        save_file(state, partial / "adapter_model.safetensors", {"format": "pt"})
        if packed:
            save_quantized(partial / "quantized.safetensors", packed)
        elif weights == "base_model":
            restored = {f"{n}.weight": each.quantized.dequantize() for n, each in stored.items()}
            _save_base(model.get_base_model(), partial / "base_model", restored)
    return Path(folder)


def _save_base(model: PreTrainedModel, folder: Path, weights: dict[str, Tensor]) -> None:
    """The transformers model without adapters, with these weights in the adapted layers."""
    state = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        state[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    state |= weights
    model.save_pretrained(folder, state_dict={n: t.detach().cpu() for n, t in state.items()})
