"""The quantizer's operators, ``coalora::quantize`` and ``coalora::dequantize``.

torch picks the implementation by the device of the tensors. The one written here is the definition,
for every device; on CUDA :mod:`.kernels` are faster, and tested to give the same bits.

A call through torch's dispatcher costs 12 us, and 50 us with ``custom_op``'s wrapper; the
de-quantization of a small layer takes 29 us on an H100. So outside a trace the implementation that
is registered for the device is called directly.
"""

import math
from collections.abc import Callable
from dataclasses import astuple, fields
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from coalora_lib.quantization.blocks import (
    block_scales,
    check_finite,
    group_scales,
    nonzero,
    restored_scales,
    scale_codes,
    to_blocks,
)
from coalora_lib.quantization.choices import SCALE_DTYPES, BlockwiseChoice
from coalora_lib.quantization.codebooks import book_grid, code_levels
from coalora_lib.quantization.packing import pack, unpack

#: Codes, scale codes, second-level scales, offset: the tensors of a ``QuantizedTensor``.
Parts = tuple[Tensor, Tensor, Tensor, Tensor]
#: Blocks that are coded together: what is made on the way stays in the processor's cache.
ROWS = 4096
#: Weights that are restored together, whole blocks of any size. What is made on the way is small
#: beside a large layer, which takes half the time so; a small one is a single piece.
RESTORED = 2**20

#: (operator, device) to what implements it.
_IMPLEMENTATIONS: dict[tuple[str, str], Callable] = {}
#: A choice as torch's operators take it.
_CHOICE = (
    "int weight_bits, int scale_bits, str scale_dtype, int block_size, int scale_block_size, "
    "str code_book"
)
_FIELDS = len(fields(BlockwiseChoice))
_choice = cache(BlockwiseChoice)
torch.library.define(
    "coalora::quantize", f"(Tensor weight, {_CHOICE}) -> (Tensor, Tensor, Tensor, Tensor)"
)
torch.library.define(
    "coalora::dequantize",
    "(Tensor codes, Tensor scale_codes, Tensor group_scales, Tensor offset, int[] shape, "
    f"ScalarType dtype, {_CHOICE}) -> Tensor",
)
torch.library.define(  # see :mod:`.linear`
    "coalora::linear",
    "(Tensor inputs, Tensor codes, Tensor scale_codes, Tensor group_scales, Tensor offset, "
    f"int[] shape, Tensor? bias, Tensor? left, Tensor? right, {_CHOICE}) -> Tensor",
)


def quantize(weight: Tensor, choice: BlockwiseChoice) -> Parts:
    """Codes, scale codes, second-level scales and offset of a weight; ValueError for a NaN."""
    return called("quantize", weight.device, weight, choice=choice)


def dequantize(
    parts: Parts, choice: BlockwiseChoice, shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """The tensor that :func:`quantize`'s parts stand for, of this shape and dtype."""
    return called("dequantize", parts[0].device, *parts, shape, dtype, choice=choice)


def register(name: str, device: str) -> Callable[[Callable], Callable]:
    """Make a function, its choice last, the implementation of ``coalora::<name>`` on a device.

    ``device`` is a kind as torch names it, such as "cuda"; "default" is for all that have none.
    """

    def made(function: Callable) -> Callable:
        _IMPLEMENTATIONS[name, device] = function
        torch.library.impl(f"coalora::{name}", device)(
            lambda *given: function(*given[:-_FIELDS], _choice(*given[-_FIELDS:]))
        )
        return function

    return made


def called(name: str, device: torch.device, *arguments: Any, choice: BlockwiseChoice) -> Any:
    """The operator; outside a trace the implementation itself, without torch's way to it."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.coalora, name).default(*arguments, *astuple(choice))
    found = _IMPLEMENTATIONS.get((name, device.type)) or _IMPLEMENTATIONS[name, "default"]
    return found(*arguments, choice)


@register("quantize", "default")
def _quantize(weight: Tensor, choice: BlockwiseChoice) -> Parts:
    blocks = to_blocks(weight, choice.block_size)
    maxima = block_scales(blocks)
    offset, largest = maxima.aminmax()
    check_finite(largest, weight)
    top = 2**choice.scale_bits - 1
    excess = to_blocks(maxima - offset, choice.scale_block_size)
    stored = group_scales(excess, SCALE_DTYPES[choice.scale_dtype])
    second = scale_codes(excess, stored.float()[:, None], top)
    scales = restored_scales(second, stored.float()[:, None], offset, top)
    bits = choice.weight_bits
    grid = book_grid(choice.code_book, bits, blocks.device)
    rows = scales.flatten()[: len(blocks)].split(ROWS)
    codes = [
        pack(grid.codes(some / nonzero(scale)[:, None]).to(torch.uint8).flatten(), bits)
        for some, scale in zip(blocks.split(ROWS), rows, strict=True)
    ]
    second = second.flatten()[: len(blocks)].to(torch.uint8)
    return torch.cat(codes), pack(second, choice.scale_bits), stored, offset


@register("dequantize", "default")
def _dequantize(
    codes: Tensor,
    scale_codes: Tensor,
    group_scales: Tensor,
    offset: Tensor,
    shape: list[int],
    dtype: torch.dtype,
    choice: BlockwiseChoice,
) -> Tensor:
    parameters = math.prod(shape)
    blocks = math.ceil(parameters / choice.block_size)
    groups = group_scales.float().repeat_interleave(choice.scale_block_size)[:blocks]
    second = unpack(scale_codes, choice.scale_bits)[:blocks].float()
    scales = restored_scales(second, groups, offset, 2**choice.scale_bits - 1)
    levels = code_levels(choice.code_book, choice.weight_bits, codes.device)
    restored = torch.empty(blocks, choice.block_size, dtype=dtype, device=codes.device)
    rows = RESTORED // choice.block_size
    pieces = codes.split(RESTORED * choice.weight_bits // 8), scales.split(rows)
    for some, scale, place in zip(*pieces, restored.split(rows), strict=True):
        found = levels.index_select(0, unpack(some, choice.weight_bits).int())
        torch.mul(found.view(place.shape), scale[:, None], out=place)
    return restored.flatten()[:parameters].view(shape)


# What a compiler is told of the results: shape, dtype and device.
@torch.library.register_fake("coalora::quantize")
def _quantized_outline(weight: Tensor, *fields: Any) -> Parts:
    choice = _choice(*fields)
    codes, second, groups = choice.stored_elements(weight.numel())
    scales = weight.new_empty(groups, dtype=SCALE_DTYPES[choice.scale_dtype])
    return (
        weight.new_empty(codes, dtype=torch.uint8),
        weight.new_empty(second, dtype=torch.uint8),
        scales,
        weight.new_empty((), dtype=torch.float32),
    )


@torch.library.register_fake("coalora::dequantize")
def _dequantized_outline(
    codes: Tensor, scale_codes: Tensor, group_scales: Tensor, offset: Tensor, *rest: Any
) -> Tensor:
    shape, dtype = rest[:2]
    return codes.new_empty(shape, dtype=dtype)


@torch.library.register_fake("coalora::linear")
def _product_outline(inputs: Tensor, *rest: Any) -> Tensor:
    shape = rest[4]
    return inputs.new_empty(*inputs.shape[:-1], shape[0])


if find_spec("triton") is not None:

    @register("quantize", "cuda")
    def _quantize_on_gpu(weight: Tensor, choice: BlockwiseChoice) -> Parts:
        from coalora_lib.quantization import kernels  # here: importing Triton looks for a GPU

        parts, largest = kernels.quantize(weight, choice)
        check_finite(largest, weight)  # last, since it waits for the device
        return parts

    @register("dequantize", "cuda")
    def _dequantize_on_gpu(*arguments) -> Tensor:
        from coalora_lib.quantization import kernels

        return kernels.dequantize(*arguments)
