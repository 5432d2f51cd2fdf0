"""Block-wise quantization with double-quantized scales (QLoRA, arXiv 2305.14314, section 3).

The tensor is cut into blocks of B0 weights. A block's scale is its largest magnitude; the scales
themselves are quantized to b1 bits against second-level scales shared by B1 blocks:

    s = max |w| over a block            u = s - m,  m = min s over the tensor
    S = max u over B1 blocks, as b2     q = round(u (2^b1 - 1) / S)
    s^ = m + q S / (2^b1 - 1)           code = nearest level to w / s^,  w^ = level[code] s^

The functions here run on any device. On a GPU :func:`quantize` and
:meth:`QuantizedTensor.dequantize` hand the same arithmetic to :mod:`.kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from coalora_lib.configuration import SCALE_DTYPES, LayerConfig
from coalora_lib.quantization.codebooks import code_levels
from coalora_lib.quantization.nearest import scheme_grid
from coalora_lib.quantization.packing import pack, unpack


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized tensor as it is stored: packed codes, double-quantized scales.

    Attributes:
        codes: (bytes,) uint8, b0-bit codes of all blocks, packed; the last block may hold padding.
        scale_codes: (bytes,) uint8, q above for each block, b1 bits each, packed.
        group_scales: (groups,) in the dtype b2, S above.
        offset: scalar float32, m above.
        config: what the tensor was quantized with.
        scheme: the code book, a key of :data:`~coalora_lib.quantization.codebooks.CODE_BOOKS`.
        shape, dtype: of the original tensor.
    """

    codes: Tensor
    scale_codes: Tensor
    group_scales: Tensor
    offset: Tensor
    config: LayerConfig
    scheme: str
    shape: torch.Size
    dtype: torch.dtype

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The stored tensors by name: everything that takes space."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value

    @property
    def nbytes(self) -> int:
        """Bytes stored, padding and offset included, as :meth:`LayerConfig.nbytes` foretells."""
        return sum(tensor.nbytes for _, tensor in self.tensors())

    @property
    def bits_per_parameter(self) -> float:
        """Bits per parameter as stored: codes, scales, padding and the offset counted."""
        return 8 * self.nbytes / math.prod(self.shape)

    @property
    def scales(self) -> Tensor:
        """The de-quantized block scales s^: (blocks,) float32."""
        blocks = math.ceil(math.prod(self.shape) / self.config.block_size)
        codes = unpack(self.scale_codes, self.config.scale_bits)[:blocks]
        return restore_scales(codes, self.group_scales, self.offset, self.config)

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """The same quantized tensor on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors()})

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor that the codes stand for, in its original shape.

        Args:
            dtype: of the result; the original's by default.
        """
        dtype = dtype or self.dtype
        kernels = gpu_kernels(self.codes)
        if kernels is not None:
            return kernels.dequantize(self, dtype)
        codes = unpack(self.codes, self.config.weight_bits).view(-1, self.config.block_size)
        levels = code_levels(self.scheme, self.config.weight_bits, codes.device)
        restored = levels.index_select(0, codes.flatten().long()).view(codes.shape)
        restored.mul_(self.scales[:, None])
        return restored.flatten()[: math.prod(self.shape)].reshape(self.shape).to(dtype)


def quantize(weight: Tensor, config: LayerConfig, scheme: str = "nf") -> QuantizedTensor:
    """Quantize a tensor of any shape to block-wise codes with double-quantized scales.

    The arithmetic is float32 whatever the input's dtype, so that a model held in another
    precision gets the same codes.

    Args:
        weight: floating point, any shape with at least one element, any device.
        config: the choice c = [b0, b1, b2, B0, B1].
        scheme: the code book, "nf" or "int".

    Raises:
        TypeError: the tensor is not floating point.
        ValueError: it is empty, or holds a NaN or an infinity; or the scheme is not known.
    """
    check_kind(weight)
    kernels = gpu_kernels(weight)
    make_parts = quantize_parts if kernels is None else kernels.quantize_parts
    parts = make_parts(weight.detach(), config, scheme)
    return QuantizedTensor(*parts, config, scheme, weight.shape, weight.dtype)


def quantize_parts(
    weight: Tensor, config: LayerConfig, scheme: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first four attributes of the quantized tensor; see :func:`quantize` for the errors."""
    blocks = to_blocks(weight, config.block_size)
    maxima = block_scales(blocks)
    offset, largest = maxima.aminmax()
    check_finite(largest, weight)
    scale_codes, group_scales = quantize_scales(maxima, config, offset)
    scales = restore_scales(scale_codes, group_scales, offset, config)
    grid = scheme_grid(scheme, config.weight_bits, blocks.device)
    codes = [
        grid.codes(some / nonzero(scale)[:, None]).to(torch.uint8)
        for some, scale in zip(blocks.split(ROWS), scales.split(ROWS), strict=True)
    ]
    return (
        pack(torch.cat(codes).flatten(), config.weight_bits),
        pack(scale_codes, config.scale_bits),
        group_scales,
        offset,
    )


#: Blocks that are coded together: what is made on the way stays in the processor's cache.
ROWS = 4096


def check_kind(weight: Tensor) -> None:
    """Refuse integers and empty tensors; see :func:`quantize` for the errors."""
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


def gpu_kernels(tensor: Tensor) -> ModuleType | None:
    """The module of the fast kernels where they can run: a CUDA tensor, and Triton installed."""
    return _kernels() if tensor.is_cuda else None


@cache
def _kernels() -> ModuleType | None:
    if find_spec("triton") is None:
        return None
    return import_module("coalora_lib.quantization.kernels")


def to_blocks(tensor: Tensor, size: int) -> Tensor:
    """Cut a tensor into rows of ``size``, zero-padded at the end: (rows, size) float32."""
    flat = tensor.detach().flatten().float()
    return F.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)


def block_scales(blocks: Tensor) -> Tensor:
    """s, the largest magnitude of each block: (blocks,)."""
    return torch.maximum(blocks.amax(dim=1), blocks.amin(dim=1).neg_())


def quantize_scales(scales: Tensor, config: LayerConfig, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize block scales against m.

    Args:
        scales: (blocks,) float32, s.
        offset: scalar float32, m.

    Returns:
        (blocks,) uint8, q; and (groups,) in the dtype b2, S.
    """
    excess = to_blocks(scales - offset, config.scale_block_size)
    stored = as_stored(excess.amax(dim=1), SCALE_DTYPES[config.scale_dtype])
    codes = scale_codes_of(excess, stored.float()[:, None], 2**config.scale_bits - 1)
    return codes.flatten()[: len(scales)].to(torch.uint8), stored


def as_stored(group_scales: Tensor, dtype: torch.dtype) -> Tensor:
    """S in the dtype b2; what its range cannot hold becomes its largest number."""
    return group_scales.clamp(max=torch.finfo(dtype).max).to(dtype)


def scale_codes_of(excess: Tensor, group_scales: Tensor, top: int | Tensor) -> Tensor:
    """q = round(u top / S), of the shape that the arguments broadcast to, float32."""
    # Rounding S down to b2 can push a code above the top one, hence the minimum.
    codes = (excess * top / nonzero(group_scales)).round_()
    return codes.clamp_(max=top) if isinstance(top, int) else torch.minimum(codes, top)


def restore_scales(
    codes: Tensor, group_scales: Tensor, offset: Tensor, config: LayerConfig
) -> Tensor:
    """s^ = m + q S / (2^b1 - 1): (blocks,) float32."""
    groups = group_scales.float().repeat_interleave(config.scale_block_size)[: len(codes)]
    return offset + codes.float() * groups / (2**config.scale_bits - 1)


def nonzero(divisor: Tensor) -> Tensor:
    """A divisor with its zeros made one, so that an all-zero block divides to zero."""
    return torch.where(divisor == 0, 1.0, divisor)
