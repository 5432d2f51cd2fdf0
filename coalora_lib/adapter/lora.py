"""PEFT's LoRA on the linear layers of a transformers model: what all methods here start from."""

import inspect
import re
import warnings
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coalora_lib.adapter.bases import refuse_unfit, refuse_weights
from coalora_lib.adapter.heads import find_heads, is_inside, named_heads
from coalora_lib.adapter.linear import LoraLinear
from coalora_lib.kinds import kind_of
from coalora_lib.validation import did_you_mean

#: What chooses layers: their paths or the last parts of these; or a pattern for whole paths.
TargetLayers = Sequence[str] | str


def adaptable_layers(
    model: nn.Module,
    heads: Sequence[str] | None = None,
    target_layers: TargetLayers | None = None,
) -> list[str]:
    """Paths of the linear layers to adapt: by default those inside numbered blocks.

    Args:
        model: a transformers model.
        heads: parts that are trained in full, whose layers are left out; found by default, see
            :func:`~coalora_lib.adapter.heads.find_heads`.
        target_layers: a choice among all linear layers but the heads': names, as "q_proj" or whole
            paths; or a regular expression for whole paths.

    Raises:
        ValueError: a name or the expression chooses nothing, or two layers share one weight.
    """
    heads = find_heads(model) if heads is None else heads
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not is_inside(name, heads)
    }
    if target_layers is None:
        chosen = [name for name in linears if any(p.isdigit() for p in name.split("."))]
    else:
        chosen = _chosen(list(linears), target_layers)
    first: dict[int, str] = {}
    for name in chosen:
        other = first.setdefault(id(linears[name].weight), name)
        if other != name:
            raise ValueError(
                f"{other} and {name} share one weight, but each would get its own "
                "choice; allowed: target_layers= with one of them"
            )
    return chosen


def _chosen(names: Sequence[str], target_layers: TargetLayers) -> list[str]:
    whole = isinstance(target_layers, str)
    found: set[str] = set()
    for wanted in [target_layers] if isinstance(target_layers, str) else target_layers:
        hits = [
            name
            for name in names
            if (re.fullmatch(wanted, name) if whole else f".{name}".endswith(f".{wanted}"))
        ]
        if not hits:
            last = sorted({name.rsplit(".", 1)[-1] for name in names})
            hint = did_you_mean(wanted, [*last, *names])
            raise ValueError(
                f"target_layers: no linear layer is {wanted!r}{hint}; the last parts of their "
                f"paths are {', '.join(last)}"
            )
        found.update(hits)
    return [name for name in names if name in found]


def check_base(
    base_model: PreTrainedModel, heads: Sequence[str] | None, target_layers: TargetLayers | None
) -> tuple[list[str], list[str]]:
    """Paths of the heads, those with the given names or all that are found, and of the layers to
    adapt, as :func:`adaptable_layers` chooses them.

    Raises:
        TypeError: it is not a transformers model.
        ValueError: the model is unfit, see :mod:`.bases`, or has no linear layer in
            a numbered block.
    """
    refuse_unfit(base_model)
    found = find_heads(base_model) if heads is None else named_heads(base_model, heads)
    names = adaptable_layers(base_model, found, target_layers)
    if not names:
        raise ValueError(
            f"{type(base_model).__name__} has no linear layer in numbered blocks; "
            "name the layers to adapt in target_layers="
        )
    refuse_weights(base_model, names)
    return found, names


def attach_lora(
    base_model: PreTrainedModel,
    rank: int,
    alpha: float,
    heads: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> PeftModel:
    """PEFT's LoRA on some layers, and some parts trained in full; the model is changed.

    Heads and layers are found by default.
    """
    heads = find_heads(base_model) if heads is None else list(heads)
    names = adaptable_layers(base_model, heads) if names is None else list(names)
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(names),
        modules_to_save=list(heads),
        task_type=_task_type(base_model, heads),
        fan_in_fan_out=isinstance(base_model.get_submodule(names[0]), Conv1D),
    )
    if not getattr(base_model, "is_loaded_in_4bit", False):  # bitsandbytes' layers are PEFT's
        # PEFT's own way to hand in a layer class, not yet public.
        settings._register_custom_module({nn.Linear: LoraLinear, Conv1D: LoraLinear})  # noqa: SLF001
    with warnings.catch_warnings():
        # PEFT 0.21 asks for it by a name that transformers 5.23 has given up.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        model = get_peft_model(base_model, settings)
    for head in heads:
        _train_in_float32(base_model.get_submodule(head).modules_to_save["default"])
    return model


#: PEFT's task types by the kind of task.
_TASK_TYPES = {
    "single-label": TaskType.SEQ_CLS,
    "several-labels": TaskType.SEQ_CLS,
    "regression": TaskType.SEQ_CLS,
    "tokens": TaskType.TOKEN_CLS,
    "spans": TaskType.QUESTION_ANS,
    "causal-lm": TaskType.CAUSAL_LM,
    "seq2seq": TaskType.SEQ_2_SEQ_LM,
    "embedding": TaskType.FEATURE_EXTRACTION,
}


def _task_type(model: PreTrainedModel, heads: Sequence[str]) -> TaskType | None:
    """For PEFT's auto classes. Those with a head train what is called one, so none without."""
    try:
        found = _TASK_TYPES.get(kind_of(model).name)
    except ValueError:
        return None
    with_head = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.QUESTION_ANS)
    text = "inputs_embeds" in inspect.signature(model.forward).parameters  # which PEFT passes on
    return found if text and (heads or found not in with_head) else None


def _train_in_float32(head: nn.Module) -> None:
    """A trained part of a 16-bit model: a step of the optimizer is too small for its dtype."""
    if all(p.dtype not in (torch.float16, torch.bfloat16) for p in head.parameters()):
        return
    head.float()
    head.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))
