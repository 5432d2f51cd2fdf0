"""A tensor cut into blocks, and what can be quantized at all."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def check_kind(weight: Tensor) -> None:
    """Refuse integers and empty tensors; see :func:`.blockwise.quantize` for the errors."""
    if not weight.is_floating_point():
        raise TypeError(f"only floating-point tensors are quantized, got {weight.dtype}")
    if weight.numel() == 0:
        raise ValueError(f"a tensor of shape {tuple(weight.shape)} has nothing to quantize")


def check_finite(largest: Tensor, weight: Tensor) -> None:
    """Refuse a tensor by its largest block scale, which a NaN or an infinity shows up in."""
    if not math.isfinite(largest.item()):
        raise ValueError(
            f"a tensor of shape {tuple(weight.shape)} holds a NaN, an infinity, or a number "
            "beyond float32"
        )


def to_blocks(tensor: Tensor, size: int) -> Tensor:
    """Cut a tensor into rows of ``size``, zero-padded at the end: (rows, size) float32."""
    flat = tensor.detach().flatten().float()
    return F.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)


def block_scales(blocks: Tensor) -> Tensor:
    """s, the largest magnitude of each block: (blocks,)."""
    return torch.maximum(blocks.amax(dim=1), blocks.amin(dim=1).neg_())


def nonzero(divisor: Tensor) -> Tensor:
    """A divisor with its zeros made one, so that an all-zero block divides to zero."""
    return torch.where(divisor == 0, 1.0, divisor)
