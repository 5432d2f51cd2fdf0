"""Block-wise quantization with double-quantized scales (QLoRA, arXiv 2305.14314, section 3).

The tensor is cut into blocks of B0 weights. A block's scale is its largest magnitude;
:mod:`.blocks` quantizes the scales themselves. With s^ the scale that is read back:

    s = max |w| over a block        code = nearest level to w / s^        w^ = level[code] s^
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from coalora_lib.quantization import operators
from coalora_lib.quantization.blocks import check_kind
from coalora_lib.quantization.choices import BlockwiseChoice


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized tensor as it is stored: packed codes, double-quantized scales."""

    codes: Tensor  #: (bytes,) uint8, b0-bit codes of all blocks, packed, the last block padded
    scale_codes: Tensor  #: (bytes,) uint8, q of each block, b1 bits each, packed
    group_scales: Tensor  #: (groups,) in the dtype b2, S
    offset: Tensor  #: scalar float32, m
    choice: BlockwiseChoice
    shape: torch.Size  #: of the original tensor
    dtype: torch.dtype  #: of the original tensor

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The stored tensors by name."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value

    @property
    def parts(self) -> operators.Parts:
        """The stored tensors as the operators take them."""
        return self.codes, self.scale_codes, self.group_scales, self.offset

    @property
    def nbytes(self) -> int:
        """Stored bytes with padding and offset, the same as the choice's ``nbytes``."""
        return sum(tensor.nbytes for _, tensor in self.tensors())

    @property
    def bits_per_parameter(self) -> float:
        """Bits per parameter as stored, see :attr:`nbytes`."""
        return 8 * self.nbytes / math.prod(self.shape)

    def to(self, device: torch.device | str) -> Self:
        """The same quantized tensor on another device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors()}
        return replace(self, **moved)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor that the codes stand for, in its original shape (and dtype by default)."""
        return operators.dequantize(self.parts, self.choice, self.shape, dtype or self.dtype)


def quantize(weight: Tensor, choice: BlockwiseChoice) -> QuantizedTensor:
    """Quantize a floating-point tensor of any shape, on any device.

    The arithmetic is float32 whatever the input's dtype, so that a model held in another precision
    gets the same codes. TypeError for integers, or no tensor or choice; ValueError if it is empty,
    or holds a NaN or an infinity.
    """
    check_kind(weight)
    if not isinstance(choice, BlockwiseChoice):
        raise TypeError(f"{choice!r:.80} is not a BlockwiseChoice")
    parts = operators.quantize(weight.detach(), choice)
    return QuantizedTensor(*parts, choice, weight.shape, weight.dtype)
