"""PEFT's LoRA on the linear layers of a transformers model: what all methods here start from."""

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coalora_lib.adapter.bases import refuse_unfit, refuse_weights
from coalora_lib.adapter.linear import LoraLinear

#: Parts outside the blocks that a classifier trains in full, where the model has them.
HEADS = ("classifier", "score", "pooler")


def adaptable_layers(model: nn.Module) -> list[str]:
    """Paths of the linear layers inside numbered blocks: not embeddings, pooler or head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(p.isdigit() for p in name.split("."))
    ]


def check_base(base_model: PreTrainedModel) -> list[str]:
    """The names of the layers that can be adapted.

    Raises:
        TypeError: it is no transformers model.
        ValueError: the model is unfit, see :mod:`.bases`, or has no linear layer in
            a numbered block.
    """
    refuse_unfit(base_model)
    names = adaptable_layers(base_model)
    if not names:
        raise ValueError(f"{type(base_model).__name__} has no linear layer in numbered blocks")
    refuse_weights(base_model, names)
    return names


def attach_lora(base_model: PreTrainedModel, rank: int, alpha: float) -> PeftModel:
    """PEFT's LoRA on every linear layer inside the blocks; a classifier's head is trained in full.

    The model is taken over and changed.
    """
    names = adaptable_layers(base_model)
    present = {name.rsplit(".", 1)[-1] for name, _ in base_model.named_modules()}
    heads = [head for head in HEADS if head in present]
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=names,
        modules_to_save=heads,
        task_type=_task_type(base_model),
        fan_in_fan_out=isinstance(base_model.get_submodule(names[0]), Conv1D),
    )
    if not getattr(base_model, "is_loaded_in_4bit", False):  # bitsandbytes' layers are PEFT's
        # PEFT's own way to hand in a layer class, not yet public.
        settings._register_custom_module({nn.Linear: LoraLinear, Conv1D: LoraLinear})  # noqa: SLF001
    model = get_peft_model(base_model, settings)
    for name, module in base_model.named_modules():
        if name.rsplit(".", 1)[-1] in heads:
            _train_in_float32(module.modules_to_save["default"])
    return model


def _task_type(model: PreTrainedModel) -> TaskType | None:
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return TaskType.SEQ_CLS
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return TaskType.CAUSAL_LM
    return None


def _train_in_float32(head: nn.Module) -> None:
    """A trained part of a 16-bit model: a step of the optimizer is too small for its dtype."""
    if all(p.dtype not in (torch.float16, torch.bfloat16) for p in head.parameters()):
        return
    head.float()
    head.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))
