"""Block-wise quantization with double-quantized scales (QLoRA, arXiv 2305.14314, section 3).

The tensor is cut into blocks of B0 weights. A block's scale is its largest magnitude; the scales
themselves are quantized to b1 bits against second-level scales shared by B1 blocks:

    s = max |w| over a block            u = s - m,  m = min s over the tensor
    S = max u over B1 blocks, as b2     q = round(u (2^b1 - 1) / S)
    s^ = m + q S / (2^b1 - 1)           code = nearest level to w / s^,  w^ = level[code] s^
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coalora_lib.configuration import SCALE_DTYPES, LayerConfig
from coalora_lib.quantization.codebooks import normal_float


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized tensor: codes, double-quantized scales, and how to read them.

    Attributes:
        codes: (blocks, B0) uint8, indices into the code book; the last block may hold padding.
        scale_codes: (groups, B1) uint8, q above; the last group may hold padding.
        group_scales: (groups, 1) in the dtype b2, S above.
        offset: scalar float32, m above.
        config: what the tensor was quantized with.
        shape, dtype: of the original tensor.
    """

    codes: Tensor
    scale_codes: Tensor
    group_scales: Tensor
    offset: Tensor
    config: LayerConfig
    shape: torch.Size
    dtype: torch.dtype

    @property
    def scales(self) -> Tensor:
        """The de-quantized block scales s^: (blocks, 1) float32."""
        padded = self.scale_codes, self.group_scales, self.offset, self.config
        return restore_scales(*padded)[: len(self.codes), None]

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor the codes stand for, in its original shape.

        Args:
            dtype: of the result; the original's by default.
        """
        levels = normal_float(self.config.weight_bits).to(self.codes.device)
        restored = levels.take(self.codes.long()) * self.scales
        restored = restored.flatten()[: math.prod(self.shape)]
        return restored.reshape(self.shape).to(dtype or self.dtype)

    @property
    def bits_per_parameter(self) -> float:
        """Bits per parameter when packed: codes, scales, padding and the offset counted."""
        bits = (
            self.codes.numel() * self.config.weight_bits
            + self.scale_codes.numel() * self.config.scale_bits
            + self.group_scales.numel() * torch.finfo(self.group_scales.dtype).bits
            + torch.finfo(self.offset.dtype).bits
        )
        return bits / math.prod(self.shape)


def quantize(weight: Tensor, config: LayerConfig) -> QuantizedTensor:
    """Quantize a tensor of any shape to NormalFloat codes with double-quantized scales.

    The arithmetic is float32 whatever the input's dtype, so that a model held in another
    precision gets the same codes.

    Args:
        weight: floating point, any shape with at least one element, any device.
        config: the choice c = [b0, b1, b2, B0, B1].

    Raises:
        TypeError: the tensor is not floating point.
        ValueError: it is empty, or holds a NaN or an infinity.
    """
    check_weight(weight)
    blocks = to_blocks(weight, config.block_size)
    block_maxima = block_scales(blocks)
    offset = block_maxima.min()
    scale_codes, group_scales = quantize_scales(block_maxima, config, offset)
    scales = restore_scales(scale_codes, group_scales, offset, config)[: len(blocks), None]
    levels = normal_float(config.weight_bits)
    codes = nearest_level(blocks / nonzero(scales), levels).to(torch.uint8)
    return QuantizedTensor(
        codes, scale_codes, group_scales, offset, config, weight.shape, weight.dtype
    )


def check_weight(weight: Tensor) -> None:
    """Refuse what cannot be quantized; see :func:`quantize` for the errors."""
    if not weight.is_floating_point():
        raise TypeError(f"only floating-point tensors are quantized, got {weight.dtype}")
    if weight.numel() == 0:
        raise ValueError(f"a tensor of shape {tuple(weight.shape)} has nothing to quantize")
    if not torch.isfinite(weight).all():
        raise ValueError(f"a tensor of shape {tuple(weight.shape)} holds a NaN or an infinity")


def to_blocks(tensor: Tensor, size: int) -> Tensor:
    """Cut a tensor into rows of ``size``, zero-padded at the end: (rows, size) float32."""
    flat = tensor.detach().flatten().float()
    return F.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)


def block_scales(blocks: Tensor) -> Tensor:
    """s, the largest magnitude of each block: (blocks,)."""
    return blocks.abs().amax(dim=1)


def quantize_scales(scales: Tensor, config: LayerConfig, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize block scales against m, a scalar or one for each: q (groups, B1) uint8, S in b2."""
    top = 2**config.scale_bits - 1
    excess = to_blocks(scales - offset, config.scale_block_size)
    stored = excess.amax(dim=1, keepdim=True).to(SCALE_DTYPES[config.scale_dtype])
    # Rounding S down to b2 can push a code above the top one, hence the clamp.
    codes = (excess * top / nonzero(stored.float())).round().clamp_(0, top)
    return codes.to(torch.uint8), stored


def restore_scales(
    codes: Tensor, group_scales: Tensor, offset: Tensor, config: LayerConfig
) -> Tensor:
    """s^ = m + q S / (2^b1 - 1), the padding at the end included: (groups * B1,) float32."""
    excess = codes.float() * group_scales.float() / (2**config.scale_bits - 1)
    return offset + excess.flatten()


#: Cells of the grid that starts the nearest-level search. NF8's closest levels are 0.005 apart,
#: two and a half cells of 2/1024, so a cell holds at most one midpoint between levels.
GRID_CELLS = 1024


def nearest_level(values: Tensor, levels: Tensor) -> Tensor:
    """The index of the nearest level, ties to the lower one: int64, same shape.

    Equal to ``torch.bucketize(values, midpoints)`` and faster: a uniform grid gives the number of
    midpoints below a value's cell, and one comparison settles the midpoint inside it.
    """
    middles = (levels[1:] + levels[:-1]) / 2
    edges = torch.linspace(-1, 1, GRID_CELLS + 1, dtype=torch.float64)
    # A quarter of a cell early, so that a value rounded up into the next cell still counts right.
    below = torch.bucketize(edges - 0.5 / GRID_CELLS, middles.double())
    half = GRID_CELLS // 2
    cells = values.clamp(-1, 1).mul_(half).add_(half).long()
    start = below.to(values.device).take(cells)
    candidates = F.pad(middles, (0, 1), value=torch.inf).to(values.device)
    return start.add_(values > candidates.take(start))


def nonzero(divisor: Tensor) -> Tensor:
    """A divisor with its zeros made one, so that an all-zero block divides to zero."""
    return torch.where(divisor == 0, 1.0, divisor)
