"""One choice of block-wise quantization, c = [b0, b1, b2, B0, B1] (paper, section 3)."""

import math
from dataclasses import astuple, dataclass
from numbers import Number
from typing import ClassVar

import torch

from coalora_lib.quantization.codebooks import CODE_BOOKS
from coalora_lib.quantization.packing import packed_bytes

#: What each field may be, in the order of c = [b0, b1, b2, B0, B1]: 432 choices in all.
FIELDS: dict[str, tuple] = {
    "weight_bits": (2, 3, 4, 8),
    "scale_bits": (2, 3, 4, 8),
    "scale_dtype": ("bf16", "fp16", "fp32"),
    "block_size": (16, 32, 64),
    "scale_block_size": (16, 64, 256),
}
SCALE_DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


@dataclass(frozen=True)
class BlockwiseChoice:
    """How one weight is quantized; ValueError for a value that is not among :data:`FIELDS`."""

    weight_bits: int  #: b0, bits of a weight code
    scale_bits: int  #: b1, bits of a quantized block scale
    scale_dtype: str  #: b2, of the second-level scales: "bf16", "fp16" or "fp32"
    block_size: int  #: B0, weights that share a scale
    scale_block_size: int  #: B1, scales that share a second-level scale
    code_book: str = "nf"  #: a key of :data:`.codebooks.CODE_BOOKS`
    _hash: ClassVar[int]

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple:
        return BlockwiseChoice, astuple(self)  # another process hashes texts otherwise

    def __post_init__(self) -> None:
        for name, allowed in (*FIELDS.items(), ("code_book", tuple(CODE_BOOKS))):
            value = getattr(self, name)
            if not isinstance(value, Number | str) or value not in allowed:
                raise ValueError(f"{name}={value!r:.80} is not a choice; allowed: {allowed}")
            # The field's own value, since 4.0 is no number of bits to shift by.
            object.__setattr__(self, name, allowed[allowed.index(value)])
        # Choices are keys of caches and look-ups, several per layer and switch.
        object.__setattr__(self, "_hash", hash(astuple(self)))

    @property
    def bits_per_parameter(self) -> float:
        """Storage in bits per parameter, scales included: b0 + b1/B0 + bits(b2)/(B0*B1)."""
        second_level = torch.finfo(SCALE_DTYPES[self.scale_dtype]).bits
        return (
            self.weight_bits
            + self.scale_bits / self.block_size
            + second_level / (self.block_size * self.scale_block_size)
        )

    def stored_elements(self, parameters: int) -> tuple[int, int, int]:
        """Bytes of codes, bytes of scale codes, and number of second-level scales."""
        blocks = math.ceil(parameters / self.block_size)
        return (
            packed_bytes(blocks * self.block_size, self.weight_bits),
            packed_bytes(blocks, self.scale_bits),
            math.ceil(blocks / self.scale_block_size),
        )

    def nbytes(self, parameters: int) -> int:
        """Bytes that a tensor of so many parameters takes, padding and offset included."""
        codes, scale_codes, groups = self.stored_elements(parameters)
        dtype = SCALE_DTYPES[self.scale_dtype]
        return codes + scale_codes + groups * dtype.itemsize + torch.float32.itemsize
