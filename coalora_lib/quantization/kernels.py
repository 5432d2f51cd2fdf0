"""The quantizer's arithmetic as Triton kernels, for tensors on a GPU.

The operators' definition makes a dozen passes over memory; these read the weights twice and write
the codes once. Results are the same: divisions and roundings are IEEE's, so that codes agree bit
for bit. Eight codes are handled together because they fill whole bytes whatever b0 is.

Only b0, which shapes the inner loop, and what sets a tensor's shape are compiled in. The other
fields are arguments, or a run over many configurations would wait for hundreds of compilations.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from coalora_lib.quantization.choices import SCALE_DTYPES, BlockwiseChoice
from coalora_lib.quantization.codebooks import code_levels, thresholds
from coalora_lib.quantization.packing import packed_bytes

#: Weights that one program reads: enough independent loads in flight, few enough registers.
TILE = 1024


def quantize(
    weight: Tensor, choice: BlockwiseChoice
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Codes, scale codes, second-level scales and offset; and the largest block scale."""
    weight, size, device = weight.contiguous(), weight.numel(), weight.device
    bits, block_size = choice.weight_bits, choice.block_size
    blocks = triton.cdiv(size, block_size)
    groups, coded = triton.cdiv(blocks, choice.scale_block_size), blocks * block_size
    maxima = torch.empty(blocks, device=device)
    scales = torch.empty_like(maxima)
    group_scales = torch.empty(groups, dtype=SCALE_DTYPES[choice.scale_dtype], device=device)
    codes, scale_codes = (
        torch.empty(packed_bytes(count, width), dtype=torch.uint8, device=device)
        for count, width in ((coded, bits), (blocks, choice.scale_bits))
    )
    rows = TILE // block_size
    _block_maxima[(triton.cdiv(blocks, rows),)](weight, maxima, size, blocks, block_size, rows)
    offset, largest = maxima.aminmax()
    _quantize_scales[(groups,)](
        maxima,
        offset,
        group_scales,
        scale_codes,
        scales,
        blocks,
        torch.finfo(group_scales.dtype).max,
        choice.scale_bits,
        choice.scale_block_size,
        num_warps=1,
    )
    limits = _padded_thresholds(choice.code_book, bits, device)
    shift = _shift(block_size // 8)
    _quantize_codes[(triton.cdiv(coded, TILE),)](
        weight, scales, limits, codes, size, coded // 8, shift, bits, TILE // 8
    )
    return (codes, scale_codes, group_scales, offset), largest


def dequantize(
    codes: Tensor,
    scale_codes: Tensor,
    group_scales: Tensor,
    offset: Tensor,
    shape: list[int],
    dtype: torch.dtype,
    choice: BlockwiseChoice,
) -> Tensor:
    """The weights that the codes stand for, in one pass."""
    restored = torch.empty(shape, dtype=dtype, device=codes.device)
    size = restored.numel()
    _dequantize[(triton.cdiv(size, TILE),)](
        codes,
        scale_codes,
        group_scales,
        offset,
        code_levels(choice.code_book, choice.weight_bits, codes.device),
        restored,
        size,
        choice.scale_bits,
        _shift(choice.block_size // 8),
        _shift(choice.scale_block_size),
        choice.weight_bits,
        TILE // 8,
    )
    return restored


def _shift(power: int) -> int:
    """The binary places that a division by a power of two shifts by."""
    return power.bit_length() - 1


@cache
def _padded_thresholds(code_book: str, bits: int, device: torch.device) -> Tensor:
    """2^bits - 1 thresholds, infinite where the code book has fewer, as the bisection expects."""
    limits = thresholds(code_book, bits, device)
    return F.pad(limits, (0, 2**bits - 1 - len(limits)), value=torch.inf)


@triton.jit
def _block_maxima(weight, maxima, size, blocks, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """s of each block; infinite where the block holds a NaN, which a maximum would hide."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = rows[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    value = tl.load(weight + at, mask=at < size, other=0.0).to(tl.float32)
    magnitude = tl.where(value == value, tl.abs(value), float("inf"))
    tl.store(maxima + rows, tl.max(magnitude, axis=1), mask=rows < blocks)


@triton.jit(do_not_specialize=["bits"])
def _quantize_scales(
    maxima, offset, group_scales, scale_codes, scales, blocks, largest, bits, GROUP: tl.constexpr
):
    """S and q of one second-level block, and the s^ they stand for."""
    group = tl.program_id(0)
    rows = group * (GROUP // 8) + tl.arange(0, GROUP // 8)
    at = rows[:, None] * 8 + tl.arange(0, 8)[None, :]
    inside = at < blocks
    smallest = tl.load(offset)
    excess = tl.where(inside, tl.load(maxima + at, mask=inside, other=0.0) - smallest, 0.0)
    stored = tl.minimum(tl.max(excess), largest).to(group_scales.dtype.element_ty)
    tl.store(group_scales + group, stored)
    top = ((1 << bits) - 1).to(tl.float32)
    scale = stored.to(tl.float32)
    divisor = tl.where(scale == 0.0, 1.0, scale) + tl.zeros_like(excess)
    code = tl.minimum(libdevice.rint(tl.div_rn(excess * top, divisor)), top)
    restored = smallest + tl.div_rn(code * scale, top + tl.zeros_like(code))
    tl.store(scales + at, restored, mask=inside)
    word = tl.sum(code.to(tl.int64) << (bits * tl.arange(0, 8)[None, :]), axis=1)
    for byte in tl.static_range(8):
        inside = (rows * 8 < blocks) & (byte < bits)
        tl.store(scale_codes + rows * bits + byte, (word >> (8 * byte)).to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["block_shift"])
def _quantize_codes(
    weight, scales, limits, codes, size, groups, block_shift, BITS: tl.constexpr, ROWS: tl.constexpr
):
    """Codes of some groups of eight weights, by bisection over the thresholds."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = rows[:, None] * 8 + tl.arange(0, 8)[None, :]
    value = tl.load(weight + at, mask=at < size, other=0.0).to(tl.float32)
    scale = tl.load(scales + (rows >> block_shift), mask=rows < groups, other=1.0)
    divisor = tl.where(scale == 0.0, 1.0, scale)[:, None] + tl.zeros_like(value)
    scaled = tl.div_rn(value, divisor)
    code = tl.zeros(scaled.shape, tl.int32)
    for bit in tl.static_range(BITS):
        step = 2 ** (BITS - 1 - bit)
        limit = tl.load(limits + code + (step - 1))
        code += tl.where(scaled > limit, step, 0)
    _store_packed(codes, code.to(tl.int64), rows, rows < groups, BITS)


@triton.jit(do_not_specialize=["scale_bits", "block_shift", "group_shift"])
def _dequantize(
    codes,
    scale_codes,
    group_scales,
    offset,
    levels,
    restored,
    size,
    scale_bits,
    block_shift,
    group_shift,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Weights of some groups of eight codes; a group lies in one block, hence one scale a row."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = rows[:, None] * 8 + tl.arange(0, 8)[None, :]
    inside = rows * 8 < size
    code = _load_group(codes, rows, inside, BITS)
    block = rows >> block_shift
    scale_code = _load_code(scale_codes, block, inside, scale_bits).to(tl.float32)
    group_scale = tl.load(group_scales + (block >> group_shift), mask=inside, other=0.0)
    top = ((1 << scale_bits) - 1).to(tl.float32) + tl.zeros_like(scale_code)
    scale = tl.load(offset) + tl.div_rn(scale_code * group_scale.to(tl.float32), top)
    value = tl.load(levels + code) * scale[:, None]
    tl.store(restored + at, value.to(restored.dtype.element_ty), mask=at < size)


@triton.jit
def _store_packed(packed, codes, rows, inside, BITS: tl.constexpr):
    """Write (rows, 8) codes, int64, as BITS bytes a row: one word where there is one so long."""
    word = tl.sum(codes << (BITS * tl.arange(0, 8)[None, :]), axis=1)
    if BITS == 2 or BITS == 4 or BITS == 8:
        words = packed.to(tl.pointer_type(_word(BITS)))
        tl.store(words + rows, word.to(_word(BITS)), mask=inside)
    else:
        for byte in tl.static_range(BITS):
            tl.store(packed + rows * BITS + byte, (word >> (8 * byte)).to(tl.uint8), mask=inside)


@triton.jit
def _load_group(packed, rows, inside, BITS: tl.constexpr):
    """The eight codes of each row: (rows, 8) integers."""
    if BITS == 2 or BITS == 4 or BITS == 8:
        words = packed.to(tl.pointer_type(_word(BITS)))
        word = tl.load(words + rows, mask=inside, other=0)
    else:  # 3 bits fill 24 of a word's 32; more than 4 need a longer one
        kind = tl.int32 if BITS < 4 else tl.int64
        word = tl.load(packed + rows * BITS, mask=inside, other=0).to(kind)
        for byte in tl.static_range(1, BITS):
            part = tl.load(packed + rows * BITS + byte, mask=inside, other=0)
            word |= part.to(kind) << (8 * byte)
    return ((word[:, None] >> (BITS * tl.arange(0, 8)[None, :])) & (2**BITS - 1)).to(tl.int32)


@triton.constexpr_function
def _word(bits):
    """The integer that eight codes fill exactly."""
    return {2: tl.int16, 4: tl.int32, 8: tl.int64}[bits]


@triton.jit
def _load_code(packed, index, inside, bits):
    """The codes at some positions of a packed stream: int32."""
    bit = index * bits
    shift = (bit % 8).to(tl.int32)
    word = tl.load(packed + bit // 8, mask=inside, other=0).to(tl.int32)
    crosses = inside & (shift + bits > 8)  # only where 8 is no multiple of the bits
    word |= tl.load(packed + bit // 8 + 1, mask=crosses, other=0).to(tl.int32) << 8
    return (word >> shift) & ((1 << bits) - 1)
