"""Double quantization of the block scales (QLoRA, arXiv 2305.14314, section 3).

With s the scale of a block, m the smallest of a tensor, and u = s - m:

    S = max u over B1 blocks, as b2     q = round(u (2^b1 - 1) / S)     s^ = m + q S / (2^b1 - 1)

Every function broadcasts, so that the quantizer calls it for one choice and the error table for
many at once. The Triton kernels repeat these lines in registers and are tested to agree bit for
bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from coalora_lib.quantization.blocks import nonzero


def group_scales(excess: Tensor, dtype: torch.dtype) -> Tensor:
    """S in the dtype b2; what its range cannot hold becomes its largest number.

    Args:
        excess: (groups, B1) float32, u.
        dtype: b2.

    Returns:
        (groups,) of the dtype.
    """
    return excess.amax(dim=1).clamp(max=torch.finfo(dtype).max).to(dtype)


def scale_codes(excess: Tensor, stored: Tensor, top: int | Tensor) -> Tensor:
    """q, of the shape that the arguments broadcast to, float32.

    Args:
        excess: u.
        stored: S, float32.
        top: 2^b1 - 1.
    """
    # Rounding S down to b2 can push a code above the top one, hence the minimum.
    codes = (excess * top / nonzero(stored)).round_()
    return codes.clamp_(max=top) if isinstance(top, int) else torch.minimum(codes, top)


def restored_scales(codes: Tensor, stored: Tensor, offset: Tensor, top: int | Tensor) -> Tensor:
    """s^, of the shape that the arguments broadcast to, float32.

    Args:
        codes: q, float32.
        stored: S, float32.
        offset: scalar float32, m.
        top: 2^b1 - 1.
    """
    return offset + codes * stored / top
