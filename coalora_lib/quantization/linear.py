"""The product with a packed weight and LoRA beside it: the operator ``coalora::linear``.

    y = Q x + L (R x) + b

The definition, for every device, restores Q and multiplies. On NVIDIA's GPUs few rows of x go
through ``linear.cu``, which reads the packed bytes alone. Products that one may differentiate keep
only the packed weight for it.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coalora_lib.quantization import cuda
from coalora_lib.quantization.choices import BlockwiseChoice
from coalora_lib.quantization.codebooks import code_levels
from coalora_lib.quantization.operators import Parts, called, dequantize, register

SOURCE = Path(__file__).with_suffix(".cu")
#: Rows of Q that a program takes; rows of x in a group, as the tensor cores take them.
ROWS, GROUP = 32, 8
#: Groups that the kernel is compiled for. More rows are multiplied with the restored weight: on an
#: H100, of 4096 x 11008 at 4 bits, 64 rows take 46 us in one pass and 81 us so.
GROUPS = (1, 2, 4, 8)
#: Codes that a lane reads at a time: a row of Q must be whole ones.
CODES = 32
#: Bytes that a lane reads at once.
ALIGNED = 16
DTYPES = (torch.bfloat16, torch.float16)
#: As the kernel numbers them.
SCALE_DTYPES = {"fp32": 0, "bf16": 1, "fp16": 2}
#: Codes of one look-up, by their bits; two for all others.
TOGETHER = {2: 4, 8: 1}


def linear(
    inputs: Tensor,
    parts: Parts,
    choice: BlockwiseChoice,
    shape: torch.Size,
    bias: Tensor | None = None,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    """(..., in) to (..., out), in the inputs' dtype.

    Args:
        parts, choice, shape: of the quantized (out, in) weight.
        bias: (out,).
        left, right: L, (out, r), and R, (r, in).
    """
    trained = (inputs, bias, left, right)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in trained):
        output = _Product.apply(inputs, *parts, choice, shape)
        output = output if bias is None else output + bias
        return with_lora(output, inputs, left, right)
    return called("linear", inputs.device, inputs, *parts, shape, bias, left, right, choice=choice)


def with_lora(output: Tensor, inputs: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """L (R x) added to an output, if there are factors."""
    if left is None or right is None:
        return output
    return output + F.linear(F.linear(inputs, right), left)


class _Product(torch.autograd.Function):
    """Q x, whose gradient restores Q again: nothing unpacked is kept in between."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *given: Any) -> Tensor:
        *parts, choice, shape = given
        ctx.save_for_backward(*parts)
        ctx.choice, ctx.shape = choice, shape
        return linear(inputs.detach(), tuple(parts), choice, shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight = dequantize(ctx.saved_tensors, ctx.choice, ctx.shape, gradients[0].dtype)
        return gradients[0] @ weight, *[None] * 6


@register("linear", "default")
def _restored(
    inputs: Tensor,
    codes: Tensor,
    scale_codes: Tensor,
    group_scales: Tensor,
    offset: Tensor,
    shape: list[int],
    bias: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    choice: BlockwiseChoice,
) -> Tensor:
    parts = codes, scale_codes, group_scales, offset
    weight = dequantize(parts, choice, torch.Size(shape), inputs.dtype)
    return with_lora(F.linear(inputs, weight, bias), inputs, left, right)


@register("linear", "cuda")
def _on_gpu(
    inputs: Tensor,
    codes: Tensor,
    scale_codes: Tensor,
    group_scales: Tensor,
    offset: Tensor,
    shape: list[int],
    bias: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    choice: BlockwiseChoice,
) -> Tensor:
    parts = codes, scale_codes, group_scales, offset
    rest = (bias, left, right)
    if not _fits(inputs, codes, shape, choice, *rest):
        return _restored(inputs, *parts, shape, *rest, choice)
    out, width = shape
    device, dtype = inputs.device, inputs.dtype
    x = _aligned(inputs.reshape(-1, width))
    groups = next(each for each in GROUPS if GROUP * each >= len(x))
    kernels = _kernels(choice, dtype, groups, -(-out // ROWS), device)
    output = torch.empty(*inputs.shape[:-1], out, dtype=dtype, device=device)
    inner, rank = None, 0
    if left is not None and right is not None:
        rank = len(right)
        inner = torch.empty(len(x), rank, dtype=torch.float32, device=device)
        kernels["narrow"]((rank, len(x)), _aligned(right), x, inner, rank, width)
        left = left.contiguous()
    kernels["linear"](
        (-(-out // ROWS),),
        *parts,
        _table(choice.code_book, choice.weight_bits, dtype, device),
        x,
        None if bias is None else bias.contiguous(),
        left,
        inner,
        output,
        *(len(x), out, width, rank),
        *(each.bit_length() - 1 for each in (choice.block_size, choice.scale_block_size)),
    )
    return output


def _fits(
    inputs: Tensor, codes: Tensor, shape: list[int], choice: BlockwiseChoice, *rest: Tensor | None
) -> bool:
    """Whether the kernel takes a product."""
    out, width = shape
    return (
        inputs.dtype in DTYPES
        and inputs.shape[-1] == width
        and 0 < inputs.numel() // width <= GROUP * GROUPS[-1]
        and all(each is None or each.dtype == inputs.dtype for each in rest)
        and width % max(CODES, choice.block_size) == 0
        and out * width < 2**31
        and codes.data_ptr() % ALIGNED == 0
        and cuda.is_available(inputs.device)
    )


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, from where :data:`ALIGNED` bytes can be read at once."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNED == 0 else tensor.clone()


@cache
def _table(code_book: str, bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the kernel looks up: (entries, levels); the first code of an entry is in the low bits of
    its number. A lone level is there twice, to fill a word."""
    levels = code_levels(code_book, bits, device).to(dtype)
    together = TOGETHER.get(bits, 2)
    entries = torch.arange(2 ** (bits * together), device=device)
    codes = [entries >> (bits * i) & (2**bits - 1) for i in range(together)]
    return levels[torch.stack(codes if together > 1 else 2 * codes, 1)].contiguous()


@cache
def _kernels(
    choice: BlockwiseChoice, dtype: torch.dtype, groups: int, programs: int, device: torch.device
) -> dict[str, cuda.Kernel]:
    """The kernels for a choice; ``programs`` are those of one product."""
    few = programs <= torch.cuda.get_device_properties(device).multi_processor_count
    return _compiled(
        choice.weight_bits,
        choice.scale_bits,
        choice.scale_dtype,
        choice.block_size < CODES,
        dtype,
        groups,
        few,
        device,
    )


@cache
def _compiled(
    bits: int,
    scale_bits: int,
    scale_dtype: str,
    split: bool,
    dtype: torch.dtype,
    groups: int,
    few: bool,
    device: torch.device,
) -> dict[str, cuda.Kernel]:
    """The kernels by name. If a product has few programs, each multiprocessor has one of many
    warps. The numbers are the fastest on an H100 of those tried."""
    warps, at_once = (16, 1) if few else (8, 3 if groups == 1 and bits < 8 else 2)
    if groups == GROUPS[-1]:
        warps, at_once = 8, 1
    defined = {
        "BITS": bits,
        "SCALE_BITS": scale_bits,
        "SCALE_DTYPE": SCALE_DTYPES[scale_dtype],
        "SPLIT": 1 + split,
        "BF16": int(dtype == torch.bfloat16),
        "GROUPS": groups,
        "WARPS": warps,
        "PROGRAMS": at_once,
    }
    together = TOGETHER.get(bits, 2)
    entries = 2 ** (bits * together) * 4 * max(1, together // 2)
    partial = 4 * ROWS * GROUP * groups
    names = {"linear": (32 * warps, max(32 * entries, warps * partial)), "narrow": (256, 0)}
    return cuda.compiled(SOURCE, names, defined, device)
