"""The paper's 432 block-wise choices: as NormalFloat, and the same with integer codes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coalora_lib.quantization.blockwise import QuantizedTensor, quantize
from coalora_lib.quantization.choices import FIELDS, BlockwiseChoice
from coalora_lib.quantization.compensation import quantize_for_inputs
from coalora_lib.quantization.errors import error_parts
from coalora_lib.quantization.linear import linear
from coalora_lib.quantization.storage import assemble
from coalora_lib.spaces.space import ConfigurationSpace, Shape, parameters, register_space


class BlockwiseSpace(ConfigurationSpace):
    """Every :class:`~coalora_lib.quantization.BlockwiseChoice` of one code book, named after it."""

    fields = FIELDS

    def __init__(self, code_book: str) -> None:
        self.name = code_book

    def make_choice(self, *values: Any) -> BlockwiseChoice:
        """The choice with these values of b0, b1, b2, B0, B1."""
        return BlockwiseChoice(*(*values, self.name))

    def nbytes(self, choice: BlockwiseChoice, shape: Shape) -> int:
        """Packed codes and scales, padding and the float32 offset included."""
        return choice.nbytes(parameters(shape))

    def bits_per_parameter(self, choice: BlockwiseChoice, shape: Shape | None = None) -> float:
        """As the paper counts, b0 + b1/B0 + bits(b2)/(B0*B1): padding and offset left out."""
        return choice.bits_per_parameter

    def quantize(self, weight: Tensor, choice: BlockwiseChoice) -> QuantizedTensor:
        """Packed codes with double-quantized scales."""
        return quantize(weight, choice)

    def quantize_for_inputs(
        self, weight: Tensor, choice: BlockwiseChoice, factor: Tensor, inputs_first: bool = False
    ) -> QuantizedTensor:
        """See :func:`coalora_lib.quantization.compensation.quantize_for_inputs`."""
        return quantize_for_inputs(weight, choice, factor, inputs_first)

    def linear(
        self,
        weight: QuantizedTensor,
        inputs: Tensor,
        bias: Tensor | None = None,
        left: Tensor | None = None,
        right: Tensor | None = None,
    ) -> Tensor:
        """See :func:`coalora_lib.quantization.linear.linear`."""
        return linear(inputs, weight.parts, weight.choice, weight.shape, bias, left, right)

    def assemble(
        self,
        stored: Mapping[str, Tensor],
        choice: BlockwiseChoice,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> QuantizedTensor:
        """See :meth:`.ConfigurationSpace.assemble`."""
        return assemble(stored, choice, shape, dtype)

    def errors(self, weight: Tensor, importance: Tensor | None = None) -> Tensor:
        """All 432 errors in a few passes over the weight."""
        parts = [part() for _, part in self.error_parts(weight, importance)]
        return torch.stack(parts).sum(0)

    def error_parts(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        pieces: int | None = None,
        sample: float | None = None,
    ) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        """See :func:`coalora_lib.quantization.errors.error_parts`."""
        return error_parts(weight, self.name, importance, pieces, sample)


#: The space ``nf``: NormalFloat codes.
NORMAL_FLOAT = register_space(BlockwiseSpace("nf"))
#: The space ``int``: symmetric integer codes.
INTEGER = register_space(BlockwiseSpace("int"))
