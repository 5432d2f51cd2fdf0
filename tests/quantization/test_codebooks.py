import pytest
import torch
from bitsandbytes.functional import get_4bit_type
from scipy.stats import norm

from coalora_lib.quantization import normal_float


def test_four_bits_are_bitsandbytes_nf4():
    published = get_4bit_type("nf4", device="cpu")
    torch.testing.assert_close(normal_float(4), published, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_are_the_formulas_quantiles(bits):
    offset, half = 0.9677083, 2 ** (bits - 1)
    below = [1 - offset + (offset - 0.5) * i / (half - 1) for i in range(half - 1)]
    above = [0.5 + (offset - 0.5) * i / half for i in range(half + 1)]
    expected = norm.ppf(below + above) / norm.ppf(offset)
    torch.testing.assert_close(
        normal_float(bits), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("bits", range(2, 9))
def test_ends_and_zero_are_exact_and_order_is_strict(bits):
    levels = normal_float(bits)
    assert len(levels) == 2**bits
    assert levels[0] == -1
    assert levels[-1] == 1
    assert (levels == 0).sum() == 1
    assert (levels > 0).sum() == (levels < 0).sum() + 1
    assert (levels.diff() > 0).all()


@pytest.mark.parametrize("bits", [1, 9])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits={bits}"):
        normal_float(bits)
