"""A configuration's adapter as plain PEFT: nothing of this library is needed to load it.

Once the configuration is fixed, (I + U) L2 is a matrix of L2's shape, so the adapter is plain LoRA.
A frozen residual term R1 R2 joins as further columns and rows, and L1 v and the correction of the
mean output are a bias of ``lora_B``:

    lora_A = [(I + U) L2; R2]    lora_B = [L1, (r / alpha) R1]
    bias = L1 v + (r / alpha) (W - Q) E[x]
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from coalora_lib.adapter.adjusters import Factors
from coalora_lib.adapter.heads import plain_name
from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.quantized import LayerState, PackedWeight, QuantizedLinear
from coalora_lib.files import atomic_folder, replaceable, seal
from coalora_lib.packaged import full_name
from coalora_lib.quantization import QuantizedTensor, save_quantized
from coalora_lib.spaces import Choice

#: By which an export is known, and what it was made of.
MARKER = "coalora_export.json"
#: What else one holds.
FILES = ("adapter_config.json", "adapter_model.safetensors", "quantized.safetensors", "base_model")
#: What may be written beside the adapter.
WEIGHTS = (None, "packed", "base_model")


def packed_tensors(weights: Mapping[str, PackedWeight]) -> dict[str, QuantizedTensor]:
    """What ``save_quantized`` writes of weights; ValueError if their space has no packed file."""
    found = {}
    for name, weight in weights.items():
        if not isinstance(weight.quantized, QuantizedTensor):
            raise ValueError(
                f"{name} is a {type(weight.quantized).__name__}, for which there is no packed "
                "file; allowed: weights='base_model'"
            )
        found[name] = weight.quantized
    return found


def check_export(folder: str | Path, weights: str | None) -> None:
    """Refuse what cannot be exported to, before anything is computed for it.

    Raises:
        ValueError: ``weights`` is none of :data:`WEIGHTS`.
        FileExistsError: the folder holds something else than an earlier export.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r:.80} is not known; allowed: {WEIGHTS}")
    replaceable(folder, MARKER, FILES)


def write_adapter(
    model: PeftModel,
    layers: AdaptedLayers,
    factors: Sequence[Factors],
    configuration: Sequence[Choice],
    folder: str | Path,
    weights: str | None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors for one configuration.

    ``factors`` are each layer's under it; ``weights``, one of :data:`WEIGHTS`, is what to write
    beside it. ValueError if that is not possible; FileExistsError if the folder is not an earlier
    export.
    """
    check_export(folder, weights)
    if weights is None:
        _check_alone(layers, configuration)
    stored = layers.packed(configuration)
    packed = packed_tensors(stored) if weights == "packed" else {}
    settings = deepcopy(model.peft_config["default"])
    scaling = settings.lora_alpha / settings.r
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    factors, ranks = without_idle(factors, layers.have_terms(configuration)), {}
    for (name, layer), under, each in zip(
        layers.quantized.items(), layers.states(configuration), factors, strict=True
    ):
        tensors = _peft_tensors(layer, under, stored[name], each, scaling)
        ranks[name] = len(tensors["lora_A.weight"])
        state |= {f"base_model.model.{name}.{part}": t for part, t in tensors.items()}
    _set_ranks(settings, ranks, scaling)
    settings.lora_bias = any(name.endswith("lora_B.bias") for name in state)
    settings.inference_mode = True
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    base = model.get_base_model()
    base_name = settings.base_model_name_or_path = full_name(base.name_or_path)
    if weights == "base_model":
        settings.base_model_name_or_path = str(Path(folder).absolute() / "base_model")
    space = next(iter(layers.quantized.values())).space
    rows = dict(zip(layers.quantized, space.to_rows(configuration), strict=True))
    about = {"base_model": base_name, "space": space.name, "configuration": rows}
    with atomic_folder(folder, MARKER, FILES) as partial:
        (partial / MARKER).write_text(seal(about))
        settings.save_pretrained(str(partial))
        save_file(state, partial / "adapter_model.safetensors", {"format": "pt"})
        if packed:
            save_quantized(partial / "quantized.safetensors", packed)
        elif weights == "base_model":
            restored = {f"{n}.weight": each.quantized.dequantize() for n, each in stored.items()}
            _save_base(base, partial / "base_model", restored)
    return Path(folder)


def _check_alone(layers: AdaptedLayers, configuration: Sequence[Choice]) -> None:
    """ValueError if an adapter is no use without the weights that it was fitted over."""
    if layers.have_codes(configuration):
        raise ValueError(
            "the codes of this configuration were chosen for texts, and an adapter alone, over the "
            "nearest codes, would do harm; allowed: weights='packed' or weights='base_model'"
        )


def without_idle(factors: Sequence[Factors], have_terms: bool) -> Sequence[Factors]:
    """Drop LoRA where it adds nothing, as before training, and all layers have frozen terms: it
    would only add rank."""
    if not have_terms or any(each.l1.any() for each in factors):
        return factors
    return [Factors(l1[:, :0], l2[:0]) for l1, l2, _ in factors]


def _set_ranks(settings: LoraConfig, ranks: Mapping[str, int], scaling: float) -> None:
    """Each layer's rank, by patterns where they differ; alpha / r is ``scaling`` everywhere."""
    settings.r = max(ranks.values())
    settings.lora_alpha = _alpha(scaling * settings.r)
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != settings.r}
    settings.rank_pattern = others
    settings.alpha_pattern = {name: _alpha(scaling * rank) for name, rank in others.items()}


def _alpha(value: float) -> int | float:
    return int(value) if value == int(value) else value


def folded(
    layer: QuantizedLinear,
    state: LayerState,
    stored: PackedWeight,
    factors: Factors,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a layer adds to its quantized weight, as B A without a scaling; and its bias.

    B, (out, k), and A, (k, in), are of the LoRA and the frozen term together. The bias, (out,), if
    there is one, holds the correction of the mean output and L1 v. ``stored`` is the weight under
    the state, ``scaling`` is alpha / r.
    """
    tensors = _peft_tensors(layer, state, stored, factors, scaling)
    added = tensors.get("lora_B.bias")
    parts = [] if layer.bias is None else [layer.bias]
    if added is not None and added.any():  # a bias of zeros needs no place
        parts.append(scaling * added)
    bias = torch.stack(parts).sum(0) if parts else None
    return scaling * tensors["lora_B.weight"], tensors["lora_A.weight"], bias


def _peft_tensors(
    layer: QuantizedLinear,
    state: LayerState,
    stored: PackedWeight,
    factors: Factors,
    scaling: float,
) -> dict[str, Tensor]:
    """PEFT's tensors of a layer by the last part of their names; ``scaling`` is alpha / r."""
    l1, l2, shift = factors
    biases = [] if shift is None else [l1 @ shift]
    if (correction := layer.correction_of(state)) is not None:
        biases.append((correction / scaling).to(l1.dtype))
    found = {"lora_B.bias": torch.stack(biases).sum(0)} if biases else {}
    left, right = stored.left, stored.right
    if left is not None and right is not None:
        if layer.transposed:
            left, right = right.T, left.T
        l1 = torch.cat([l1, left.to(l1) / scaling], dim=1)
        l2 = torch.cat([l2, right.to(l2)])
    return found | {"lora_B.weight": l1, "lora_A.weight": l2}


def _save_base(model: PreTrainedModel, folder: Path, weights: dict[str, Tensor]) -> None:
    """The transformers model without adapters, with these weights in the adapted layers."""
    state = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        state[plain_name(name)] = tensor
    state |= weights
    model.save_pretrained(folder, state_dict={n: t.detach().cpu() for n, t in state.items()})
