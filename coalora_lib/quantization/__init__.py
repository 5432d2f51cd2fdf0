"""How a weight becomes block-wise codes and back, without layers or models."""

from coalora_lib.quantization.blockwise import QuantizedTensor, quantize
from coalora_lib.quantization.choices import BlockwiseChoice
from coalora_lib.quantization.codebooks import CODE_BOOKS, normal_float, symmetric_integer
from coalora_lib.quantization.compensation import quantize_for_inputs
from coalora_lib.quantization.storage import load_quantized, save_quantized

__all__ = [
    "CODE_BOOKS",
    "BlockwiseChoice",
    "QuantizedTensor",
    "load_quantized",
    "normal_float",
    "quantize",
    "quantize_for_inputs",
    "save_quantized",
    "symmetric_integer",
]
