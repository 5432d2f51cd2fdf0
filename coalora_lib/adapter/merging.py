"""One configuration folded into a plain transformers model: nothing of PEFT or this library left.

    W = Q + R1 R2 + (alpha / r) L1 (I + U) L2
    bias = bias + (W_pre - Q) E[x] + (alpha / r) L1 v

The weights are de-quantized: the model computes what the quantized one does, without its size.
"""

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coalora_lib.adapter.adjusters import Factors
from coalora_lib.adapter.checkpointing import Checkpoint
from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.quantized import LayerState, QuantizedLinear
from coalora_lib.spaces import Choice


@torch.no_grad()
def merged(
    base: PreTrainedModel,
    layers: AdaptedLayers,
    factors: Sequence[Factors],
    configuration: Sequence[Choice],
    owner: nn.Module,
) -> PreTrainedModel:
    """A plain model of its own memory for one configuration.

    Args:
        base: the transformers model with the LoRA layers in it; left as it is.
        layers: its adapted layers.
        factors: each layer's under the configuration.
        configuration: a choice for each layer.
        owner: whose method is among the model's hooks; neither it nor the hook is copied.

    Raises:
        ValueError: a layer needs a bias that a model of this class cannot have.
    """
    replaced: dict[str, nn.Module] = {
        name: _plain_linear(layer, state, each, layers.scaling)
        for (name, layer), state, each in zip(
            layers.quantized.items(), layers.states(configuration), factors, strict=True
        )
    }
    needed = [
        name
        for name, layer in layers.quantized.items()
        if layer.bias is None and replaced[name].bias is not None
    ]
    plain = copied(base, replaced, _config_with_biases(base, needed), owner)
    if needed:
        _add_biases(plain)
    return plain.requires_grad_(True)


def copied(
    base: PreTrainedModel, replaced: Mapping[str, nn.Module], config: Any, owner: nn.Module
) -> PreTrainedModel:
    """A plain copy of a model with other layers, and with the parts that were trained in full.

    Args:
        base: the transformers model with the LoRA layers in it; left as it is.
        replaced: by name, what stands for a layer and its LoRA.
        config: of the copy.
        owner: whose method is among the model's hooks; neither it nor the hook is copied.
    """
    replaced = dict(replaced)
    for name, module in base.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            replaced[name] = _trained(module)
    # A deep copy in which these stand for what they replace: the rest is never copied.
    known: dict[int, Any] = {id(base.get_submodule(n)): module for n, module in replaced.items()}
    known[id(base.config)] = config
    known[id(owner)] = nobody = object()
    for module in base.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if isinstance(function, Checkpoint):
            known[id(function)] = function.function
    plain = deepcopy(base, known)
    hooks = plain._forward_pre_hooks  # noqa: SLF001
    for number in [n for n, hook in hooks.items() if getattr(hook, "__self__", None) is nobody]:
        del hooks[number]
    del plain.peft_config  # PEFT leaves it on the model
    _untie(plain)
    return plain


def _plain_linear(
    layer: QuantizedLinear, state: LayerState, factors: Factors, scaling: float
) -> nn.Linear | Conv1D:
    """The layer under a choice, with its LoRA folded in; summed in float32 at least."""
    dtype = layer.kept.dtype
    wide = torch.promote_types(dtype, torch.float32)
    l1, l2 = factors.l1.to(wide), factors.l2.to(wide)
    change = scaling * (l1 @ l2)
    shift = None if factors.shift is None else scaling * (l1 @ factors.shift.to(wide))
    weight = layer.packed(state).restore().to(wide) + (change.T if layer.transposed else change)
    parts = (layer.bias, layer.correction_of(state), shift)
    biases = [part.to(wide) for part in parts if part is not None]
    with torch.device("meta"):  # without memory, and without a draw from the random numbers
        plain: nn.Linear | Conv1D = (
            Conv1D(layer.out_features, layer.in_features)
            if layer.transposed
            else nn.Linear(layer.in_features, layer.out_features, bias=bool(biases))
        )
    plain.weight = nn.Parameter(weight.to(dtype))
    if biases:
        plain.bias = nn.Parameter(torch.stack(biases).sum(0).to(dtype))
    return plain.train(layer.training)


def _trained(wrapper: ModulesToSaveWrapper) -> nn.Module:
    """The original part of a model with the values that training gave its copy, in its dtype."""
    part = deepcopy(wrapper.original_module)
    part.load_state_dict(wrapper.modules_to_save["default"].state_dict())
    return part.train(wrapper.training)


def _config_with_biases(base: PreTrainedModel, names: Sequence[str]) -> Any:
    """A copy of the model's configuration under which these layers have biases.

    ValueError if no switch of the configuration gives one of them a bias.
    """
    config = deepcopy(base.config)
    missing = set(names)
    for switch in [key for key, on in vars(config).items() if "bias" in key and on is False]:
        tried = copy(config)
        setattr(tried, switch, True)
        outline = _outline(base, tried)
        gained = {n for n in missing if outline.get_submodule(n).bias is not None}
        if gained:
            config, missing = tried, missing - gained
    if missing:
        first = next(name for name in names if name in missing)
        raise ValueError(
            f"{first} has no bias, and a {type(base).__name__} cannot be given one: the correction "
            "of the mean output, or the adjuster's shift, cannot be merged; call "
            "export_peft_adapter, which writes it as a bias of lora_B"
        )
    return config


def _outline(base: PreTrainedModel, config: Any) -> PreTrainedModel:
    """A model without memory, as transformers makes it from a configuration."""
    with torch.device("meta"):
        return type(base)(deepcopy(config))


def _add_biases(plain: PreTrainedModel) -> None:
    """Biases of zero wherever the changed configuration asks for one: so it can be loaded again."""
    for name, outlined in _outline(plain, plain.config).named_modules():
        if isinstance(outlined, nn.Linear) and outlined.bias is not None:
            linear = plain.get_submodule(name)
            if linear.bias is None:
                linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


def _untie(plain: PreTrainedModel) -> None:
    """Have the configuration say so where an output layer was trained apart from the embedding."""
    output = plain.get_output_embeddings()
    if output is None or not getattr(plain.config, "tie_word_embeddings", False):
        return
    if output.weight is not plain.get_input_embeddings().weight:
        plain.config.tie_word_embeddings = False
