"""Codes whose errors make up for each other, for the inputs that a layer is given.

The nearest code is best for a weight by itself. But an output W x is a sum over inputs, and there
the weights of later inputs can make up for the errors of earlier ones. GPTQ (Frantar et al., ICLR
2023, arXiv 2210.17323) takes the inputs in their order, once. With H = E[x x^T], H^-1 = U^T U and U
upper triangular, for each input j, all outputs at once:

    w^_j = nearest level to w_j, times s^      e = (w_j - w^_j) / U_jj
    w_k <- w_k - U_jk e                        for every later input k

Blocks and their scales s^ are those of the nearest codes: the bytes and the way to read them are
the same.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from coalora_lib.quantization.blocks import nonzero
from coalora_lib.quantization.blockwise import QuantizedTensor, quantize
from coalora_lib.quantization.choices import BlockwiseChoice
from coalora_lib.quantization.codebooks import code_levels, thresholds
from coalora_lib.quantization.packing import pack

#: After so many inputs their errors reach all later ones, in one product; as in GPTQ.
GROUP = 128


@torch.no_grad()
def quantize_for_inputs(
    weight: Tensor, choice: BlockwiseChoice, factor: Tensor, inputs_first: bool = False
) -> QuantizedTensor:
    """Quantize a weight so that its outputs on some inputs are kept.

    Args:
        weight: (out, in), or (in, out) with ``inputs_first``.
        factor: K of H = K K^T, (in, in) lower triangular, float32 or float64; its dtype is computed
            in.

    Returns:
        Of the weight's shape and dtype, with the scales that :func:`.quantize` gives it.

    Raises:
        TypeError: as :func:`.quantize`.
        ValueError: the weight is no matrix, or the factor is not for so many inputs; or as
            :func:`.quantize`.
        torch.linalg.LinAlgError: the factor is singular, or holds a NaN.
    """
    quantized = quantize(weight, choice)
    if weight.ndim != 2:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} must be a matrix")
    inputs = weight.shape[0 if inputs_first else 1]
    if factor.shape != (inputs, inputs):
        raise ValueError(
            f"a factor of shape {tuple(factor.shape)} is not for {inputs} inputs; allowed: "
            f"({inputs}, {inputs})"
        )
    levels = code_levels(choice.code_book, choice.weight_bits, weight.device)
    by_input = (weight, _scales(quantized, levels))
    if not inputs_first:
        by_input = (weight.T, by_input[1].T)
    left, scales = (each.to(factor.dtype, copy=True).contiguous() for each in by_input)
    codes = _codes(left, scales, factor, choice)
    codes = (codes if inputs_first else codes.T).flatten()
    zero = int((levels == 0).nonzero()[0])
    padded = F.pad(codes, (0, -len(codes) % choice.block_size), value=zero)
    return replace(quantized, codes=pack(padded, choice.weight_bits))


def _scales(quantized: QuantizedTensor, levels: Tensor) -> Tensor:
    """s^ of every weight, float32: what the code of the largest level stands for."""
    choice = quantized.choice
    top = int(levels.abs().argmax())
    blocks = -(-quantized.shape.numel() // choice.block_size)
    codes = torch.full((blocks * choice.block_size,), top, dtype=torch.uint8, device=levels.device)
    all_top = replace(quantized, codes=pack(codes, choice.weight_bits))
    return all_top.dequantize(torch.float32) / levels[top]


def _codes(left: Tensor, scales: Tensor, factor: Tensor, choice: BlockwiseChoice) -> Tensor:
    """(in, out) uint8 for weights and scales, (in, out) each; the weights are overwritten."""
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    book = choice.code_book, choice.weight_bits, left.device
    levels, limits = code_levels(*book).to(left), thresholds(*book).to(left)
    divisors, diagonal = nonzero(scales), upper.diagonal()
    codes = torch.empty(left.shape, dtype=torch.uint8, device=left.device)
    errors = torch.empty(min(GROUP, len(left)), left.shape[1], dtype=left.dtype, device=left.device)
    for first in range(0, len(left), GROUP):
        last = min(first + GROUP, len(left))
        for row in range(first, last):
            found = torch.bucketize(left[row] / divisors[row], limits)
            codes[row] = found
            error = errors[row - first]
            torch.sub(left[row], levels[found] * scales[row], out=error).div_(diagonal[row])
            left[row + 1 : last].addr_(upper[row, row + 1 : last], error, alpha=-1)
        left[last:].addmm_(upper[first:last, last:].T, errors[: last - first], alpha=-1)
    return codes
