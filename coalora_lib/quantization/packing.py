"""Bit packing: k-bit codes, k from 2 to 8, as one little-endian stream of bytes.

Bit i of code j is bit j * k + i of the stream: eight codes of k bits fill k bytes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: The number of codes is padded to a multiple of this, after which every k fills whole bytes.
CODES_PER_GROUP = 8


def packed_bytes(codes: int, bits: int) -> int:
    """The bytes that so many codes take, padding to whole groups of eight included."""
    return math.ceil(codes / CODES_PER_GROUP) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack (n,) uint8 codes into (ceil(n / 8) * k,) uint8; codes that fill the last group are 0."""
    codes = F.pad(codes, (0, -len(codes) % CODES_PER_GROUP))
    if bits == 8:
        return codes
    codes_per_word, bytes_per_word = _word(bits)
    words = codes.view(-1, codes_per_word).to(_holds(bytes_per_word))
    word = words[:, 0].clone()
    for position in range(1, codes_per_word):
        word |= words[:, position] << (bits * position)
    if bytes_per_word == 1:
        return word
    shifts = torch.arange(0, 8 * bytes_per_word, 8, dtype=word.dtype, device=word.device)
    return (word[:, None] >> shifts).to(torch.uint8).flatten()


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The codes of :func:`pack`, its padding included: (8 * bytes / k,) uint8."""
    if bits == 8:
        return packed
    codes_per_word, bytes_per_word = _word(bits)
    word = packed
    if bytes_per_word > 1:
        parts = packed.view(-1, bytes_per_word).to(_holds(bytes_per_word))
        word = parts[:, 0].clone()
        for position in range(1, bytes_per_word):
            word |= parts[:, position] << (8 * position)
    codes = torch.empty(len(word), codes_per_word, dtype=torch.uint8, device=packed.device)
    for position in range(codes_per_word):
        codes[:, position] = (word >> (bits * position)) & (2**bits - 1)
    return codes.flatten()


def _word(bits: int) -> tuple[int, int]:
    """The smallest number of codes that fills whole bytes, and those bytes."""
    common = math.gcd(8, bits)
    return 8 // common, bits // common


def _holds(size: int) -> torch.dtype:
    """The fastest integer that holds words of so many bytes: 5 and 7 bits need more than 32."""
    if size == 1:
        return torch.uint8
    return torch.int32 if size <= 3 else torch.int64
