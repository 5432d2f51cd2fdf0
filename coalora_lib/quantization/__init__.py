"""Block-wise quantization of a weight tensor; knows nothing of layers or models."""

from coalora_lib.quantization.blockwise import QuantizedTensor, quantize
from coalora_lib.quantization.codebooks import normal_float

__all__ = ["QuantizedTensor", "normal_float", "quantize"]
