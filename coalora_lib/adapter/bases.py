"""Refuse base models whose weights are missing, sharded or already quantized."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

#: Dtypes that configurations can be made from.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Packages whose layers and tensors hold quantized weights, by the name that they import under.
QUANTIZERS = {
    "aqlm": "AQLM",
    "auto_gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed_tensors": "compressed-tensors",
    "eetq": "EETQ",
    "fbgemm_gpu": "FBGEMM",
    "gptqmodel": "GPTQ or AWQ",
    "hqq": "HQQ",
    "optimum": "quanto",
    "quanto": "quanto",
    "torchao": "torchao",
    "vptq": "VPTQ",
}


def refuse_unfit(model: PreTrainedModel) -> None:
    """Refuse a model without plain pre-trained weights of its own.

    Raises:
        TypeError: it is not a transformers model.
        ValueError: it carries an adapter, is quantized, or has parameters on the meta device or
            offloaded.
    """
    kind = type(model).__name__
    if any(isinstance(m, BaseTunerLayer | PeftModel) for m in model.modules()):
        raise ValueError(
            f"the {kind} already has an adapter; load it again without one, or merge "
            "that adapter first"
        )
    if not isinstance(model, PreTrainedModel):
        inner = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
        hint = f"; it wraps a {type(inner[0]).__name__}: hand that in" if inner else ""
        raise TypeError(f"the base model must be a transformers PreTrainedModel, not {kind}{hint}")
    if (method := _quantized_by(model)) is not None:
        raise ValueError(
            f"the {kind} is quantized by {method} already; load it without "
            "quantization: configurations "
            "are made from the pre-trained weights"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(_missing(kind, name, offloaded=_is_offloaded(model)))


def refuse_weights(model: PreTrainedModel, names: Sequence[str]) -> None:
    """ValueError for a layer, by name, whose weight is not a plain parameter of a known dtype."""
    kind = type(model).__name__
    for name in names:
        weight = model.get_submodule(name).weight
        if type(weight) is not nn.Parameter:
            raise ValueError(
                f"the {kind} has {name}.weight as a {type(weight).__name__}, not as a plain "
                "parameter: it is sharded, parametrized or pruned; undo that first"
            )
        if weight.dtype not in DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"the {kind} has {name}.weight in {weight.dtype}; allowed: {allowed}")


def _quantized_by(model: PreTrainedModel) -> str | None:
    """What quantized a model, as far as can be told without that package."""
    settings = getattr(model.config, "quantization_config", None)
    quantizer = getattr(model, "hf_quantizer", None)
    if settings is None and quantizer is not None:
        settings = quantizer.quantization_config
    if settings is not None:
        named = settings if isinstance(settings, dict) else vars(settings)
        method = named.get("quant_method", "an unnamed method")
        return str(getattr(method, "value", method))
    if any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8)):
        return "bitsandbytes"
    for part in _parts(model):
        path = type(part).__module__
        if path.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            return "torch.ao"
        if (package := path.partition(".")[0]) in QUANTIZERS:
            return QUANTIZERS[package]
    return None


def _parts(model: nn.Module) -> Iterator[Any]:
    yield from model.modules()
    yield from model.parameters()


def _is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate's hooks bring a layer's weights in only for its forward."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    flat = (each for hook in hooks for each in getattr(hook, "hooks", [hook]))
    return any(getattr(hook, "offload", False) for hook in flat)


def _missing(kind: str, name: str, offloaded: bool) -> str:
    if offloaded:
        return (
            f"the {kind} has {name} offloaded by accelerate; load it with a device_map that keeps "
            "all of it in memory"
        )
    return f"the {kind} has {name} on the meta device: it has no weights to quantize"
