"""The checksum by which a base model is recognised."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from coalora_lib.adapter.heads import is_inside, plain_name


def base_checksum(
    base: PreTrainedModel, weights: Mapping[str, Tensor], heads: Sequence[str]
) -> str:
    """sha256 over the pre-trained parameters, the same before and after LoRA is attached.

    ``weights`` are the adapted layers' own. Heads, which are trained in full, are left out.
    """
    digest = hashlib.sha256()
    for name, read in sorted(_pretrained(base, weights, heads)):
        tensor = read()  # weights may be apart from the model: one at a time
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pretrained(
    base: PreTrainedModel, weights: Mapping[str, Tensor], heads: Sequence[str]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    for layer in weights:
        yield f"{layer}.weight", partial(weights.__getitem__, layer)
    for name, parameter in base.named_parameters():
        if is_inside(name, heads) or ".lora_" in name:
            continue
        layer, _, part = plain_name(name).rpartition(".")
        if layer not in weights or part != "weight":
            yield f"{layer}.{part}", parameter.detach
