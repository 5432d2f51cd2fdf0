import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coalora_lib.quantization.packing import pack, packed_bytes, unpack


@given(st.integers(0, 200), st.integers(2, 8), st.integers(0, 2**31))
def test_codes_come_back(count, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (count,), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert len(packed) == packed_bytes(count, bits)
    restored = unpack(packed, bits)
    assert torch.equal(restored[:count], codes)
    assert (restored[count:] == 0).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_layout_is_a_little_endian_stream_of_bits(bits):
    codes = torch.randint(2**bits, (24,), dtype=torch.uint8)
    stream = sum(int(code) << (bits * position) for position, code in enumerate(codes))
    assert bytes(pack(codes, bits).tolist()) == stream.to_bytes(3 * bits, "little")


def test_eight_codes_of_three_bits_fill_three_bytes():
    assert len(pack(torch.arange(8, dtype=torch.uint8), 3)) == 3
