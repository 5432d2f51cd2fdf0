"""A tensor cut into blocks, and the scales of the blocks (QLoRA, arXiv 2305.14314, section 3).

A block's scale s is its largest magnitude. With m the smallest scale of a tensor and u = s - m,
scales are quantized in their turn:

    S = max u over B1 blocks, as b2     q = round(u (2^b1 - 1) / S)     s^ = m + q S / (2^b1 - 1)

The functions of scales broadcast: the quantizer calls them for one choice, the error table for
many at once. The Triton kernels repeat them in registers and are tested to agree bit for bit.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def check_kind(weight: Tensor) -> None:
    """Refuse integers and empty tensors; see :func:`.blockwise.quantize` for the errors."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"only tensors are quantized, got {type(weight).__name__}")
    if not weight.is_floating_point():
        raise TypeError(f"only floating-point tensors are quantized, got {weight.dtype}")
    if weight.numel() == 0:
        raise ValueError(f"a tensor of shape {tuple(weight.shape)} has no elements to quantize")


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


def group_scales(excess: Tensor, dtype: torch.dtype) -> Tensor:
    """S of u, (groups, B1) float32, in the dtype b2: (groups,), at most its largest number."""
    return excess.amax(dim=1).clamp(max=torch.finfo(dtype).max).to(dtype)


def scale_codes(excess: Tensor, stored: Tensor, top: int | Tensor) -> Tensor:
    """q of u and S, with ``top`` 2^b1 - 1; all float32, of the shape they broadcast to."""
    # Rounding S down to b2 can push a code above the top one, hence the minimum.
    codes = (excess * top / nonzero(stored)).round_()
    return codes.clamp_(max=top) if isinstance(top, int) else torch.minimum(codes, top)


def restored_scales(codes: Tensor, stored: Tensor, offset: Tensor, top: int | Tensor) -> Tensor:
    """s^ of q, S and m, with ``top`` 2^b1 - 1; all float32, of the shape they broadcast to."""
    return offset + codes * stored / top
