"""The types of GGUF files, which llama.cpp runs: one type for each layer.

libgguf quantizes weights byte for byte as llama.cpp does, and de-quantizes them as it does too.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from coalora_lib.spaces.space import ConfigurationSpace, Shape, parameters, register_space

#: Of each type: weights of a row that form a block, and bytes of a block, its scales included. As
#: ``gguf.GGML_QUANT_SIZES`` has them, here so that costs are known without that package.
BLOCKS: dict[str, tuple[int, int]] = {
    "Q6_K": (256, 210),
    "Q5_K": (256, 176),
    "Q4_K": (256, 144),
    "IQ4_XS": (256, 136),
    "Q3_K": (256, 110),
    "Q2_K": (256, 84),
    "MXFP4": (32, 17),
    "Q4_0": (32, 18),
    "IQ4_NL": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "F16": (1, 2),
    "F32": (1, 4),
}
#: Types whose numbers are torch's.
PLAIN = {"F16": torch.float16, "F32": torch.float32}
#: What a layer may take. The search moves from one to the next: rows that take blocks of 256 take
#: all of them, others those from MXFP4 or F16 on, so that none of these are cut apart. Saved models
#: name a type by its position here.
TYPES = tuple(name for name in BLOCKS if name != "F32")
#: Rows that a sample holds at least.
FEWEST_ROWS = 32


def library(name: str) -> ModuleType:
    """gguf or libgguf; ModuleNotFoundError naming the extra if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"the space 'gguf' needs the package {name}: pip install 'coalora-lib[gguf]'"
        ) from None


def fits(kind: str, shape: Shape) -> bool:
    """Whether rows of this length can be stored as a type: they are whole blocks."""
    columns = shape if isinstance(shape, int) else shape[-1]
    return columns % BLOCKS[kind][0] == 0


def stored_bytes(kind: str, shape: Shape) -> int:
    """Bytes of a tensor of this shape stored as a type."""
    block, size = BLOCKS[kind]
    return math.ceil(parameters(shape) / block) * size


@dataclass(frozen=True)
class GgufWeight:
    """A weight as a GGUF file holds it; on the processor, wherever the weight is."""

    kind: str  #: the type, a key of :data:`BLOCKS`
    data: Tensor  #: (rows, bytes of a row) uint8
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return self.data.nbytes

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The rows."""
        yield "data", self.data

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight that is computed with, where the weight was; in its dtype by default."""
        if self.kind in PLAIN:
            found = self.data.view(PLAIN[self.kind])
        else:
            libgguf = library("libgguf")
            kind = libgguf.GGMLQuantizationType[self.kind]
            found = torch.from_numpy(libgguf.dequantize_rows(self.data.numpy(), kind))
        return found.reshape(self.shape).to(self.device, dtype or self.dtype)


def stored(weight: Tensor, kind: str) -> GgufWeight:
    """A weight, (rows, columns) or a vector, stored as a type.

    Raises:
        TypeError: it is not a floating-point tensor.
        ValueError: its rows are no whole blocks, or it holds a NaN, or more than float16 can, in
            which scales are stored.
        ModuleNotFoundError: libgguf is not installed.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        given = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"a weight must be a floating-point tensor, not {given}")
    if weight.numel() == 0 or weight.dim() == 0 or not fits(kind, tuple(weight.shape)):
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} cannot be {kind}: its rows must be a "
            f"multiple of {BLOCKS[kind][0]} long"
        )
    libgguf = library("libgguf")
    exact = weight.detach().to("cpu", torch.float32).contiguous()
    largest = torch.finfo(PLAIN.get(kind, torch.float16)).max
    if not (exact.abs() <= largest).all():
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} cannot be {kind}: it holds a NaN, or a "
            f"number above {largest:g}"
        )
    rows = libgguf.quantize_rows(exact.numpy(), libgguf.GGMLQuantizationType[kind])
    data = torch.from_numpy(rows).view(torch.uint8)
    return GgufWeight(kind, data, tuple(weight.shape), weight.dtype, weight.device)


class GgufSpace(ConfigurationSpace):
    """The types of GGUF files; a layer may take those whose blocks its rows can be cut into.

    A row is along the weight's last dimension: the inputs of a linear layer.
    """

    name = "gguf"
    fields: dict[str, tuple] = {"type": TYPES}  # noqa: RUF012

    def allowed(self, choice: Any, shape: Shape) -> bool:
        """Whether a weight's rows are whole blocks."""
        return fits(choice.type, shape)

    def nbytes(self, choice: Any, shape: Shape) -> int:
        """Bytes of the tensor in the file, without the padding to the next one."""
        return stored_bytes(choice.type, shape)

    def bits_per_parameter(self, choice: Any, shape: Shape | None = None) -> float:
        """8 bytes(block) / weights(block), scales included: 4.5 of Q4_0."""
        block, size = BLOCKS[choice.type]
        return 8 * size / block

    def quantize(self, weight: Tensor, choice: Any) -> GgufWeight:
        """As llama.cpp quantizes to the type; see :func:`stored` for errors."""
        return stored(weight, choice.type)

    def assemble(
        self, stored: Mapping[str, Tensor], choice: Any, shape: Sequence[int], dtype: torch.dtype
    ) -> GgufWeight:
        """See :meth:`.ConfigurationSpace.assemble`."""
        data, (rows, columns) = stored.get("data"), shape
        expected = torch.uint8, (rows, stored_bytes(choice.type, columns))
        found = None if data is None else (data.dtype, tuple(data.shape))
        if data is None or found != expected:
            raise ValueError(f"data is {found}, expected {expected}")
        return GgufWeight(choice.type, data, tuple(shape), dtype, data.device)

    def error_parts(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        pieces: int | None = None,
        sample: float | None = None,
    ) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        """:meth:`errors`; with a ``sample``, of so many evenly spaced rows, scaled up.

        Rows are quantized apart from each other. 32 rows are taken at least.
        """
        rows = len(weight)
        count = rows if sample is None else max(math.ceil(rows * sample), FEWEST_ROWS)
        if count >= rows:
            yield weight.numel(), lambda: self.errors(weight, importance)
            return
        chosen = torch.linspace(0, rows - 1, count, device=weight.device).round().long()
        some = None if importance is None else importance[chosen]
        yield weight.numel(), lambda: self.errors(weight[chosen], some) * (rows / count)


#: The space ``gguf``.
GGUF = register_space(GgufSpace())
