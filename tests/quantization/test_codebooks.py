import pytest
import torch
from bitsandbytes.functional import get_4bit_type
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from coalora_lib.quantization import (
    CODE_BOOKS,
    BlockwiseChoice,
    normal_float,
    quantize,
    symmetric_integer,
)
from coalora_lib.quantization.codebooks import (
    book_grid,
    code_book,
    code_levels,
    level_grid,
    thresholds,
)

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integer_levels_are_even_and_symmetric(bits):
    levels = symmetric_integer(bits)
    top = 2 ** (bits - 1) - 1
    assert len(levels) == 2**bits - 1
    torch.testing.assert_close(levels * top, torch.arange(-top, top + 1).float())
    assert torch.equal(levels, -levels.flip(0))


@pytest.mark.parametrize("book", [normal_float, symmetric_integer])
@pytest.mark.parametrize("bits", [1, 9])
def test_other_bits_are_refused(book, bits):
    with pytest.raises(ValueError, match=f"bits={bits}"):
        book(bits)


def test_a_further_format_is_one_function(monkeypatch):
    monkeypatch.setitem(
        CODE_BOOKS, "power", lambda bits: torch.tensor([-1, -0.5, -0.25, 0, 0.25, 0.5, 1])
    )
    weight = torch.randn(4, 64)
    restored = quantize(weight, BlockwiseChoice(3, 8, "fp32", 16, 16, "power")).dequantize()
    assert len(restored[0, :16].unique()) <= 7


@pytest.mark.parametrize(
    "levels",
    [[-1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0], [-2.0, 0.0], [-1, -0.5, 0, 0.5, 1]],
    ids=["no-zero", "repeated", "falling", "too-wide", "too-many"],
)
def test_unusable_code_books_are_refused(monkeypatch, levels):
    monkeypatch.setitem(CODE_BOOKS, "odd", lambda bits: torch.tensor(levels))
    with pytest.raises(ValueError, match=r"2-bit code book 'odd' must be at most 4 ascending"):
        code_levels.__wrapped__("odd", 2)


def test_an_unknown_code_book_is_named():
    with pytest.raises(ValueError, match="code_book='fp4' is not a choice; allowed"):
        BlockwiseChoice(4, 8, "fp32", 16, 16, "fp4")
    with pytest.raises(ValueError, match="code_book='fp4' is not known; allowed: nf, int"):
        code_levels("fp4", 4)


def around(values):
    """The values and the float32 numbers on both sides of each."""
    up, down = torch.tensor(3.0), torch.tensor(-3.0)
    return torch.cat([values, torch.nextafter(values, up), torch.nextafter(values, down)])


@pytest.mark.parametrize("name", ["nf", "int"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_nearest_level_is_brute_force_with_ties_to_the_lower(name, bits):
    levels, middles = code_book(name, bits), thresholds(name, bits)
    grid = book_grid(name, bits, torch.device("cpu"))
    edges = (torch.arange(grid.cells + 2) - grid.zero) * (2 / grid.cells)
    values = torch.cat([torch.randn(20_000) / 2, around(middles), around(edges)])
    assert torch.equal(grid.codes(values), torch.bucketize(values, middles))
    distance = (values.double()[:, None] - levels.double()).abs()
    chosen = distance.gather(1, grid.codes(values)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distance.amin(1), atol=1e-7, rtol=0)


@given(st.lists(st.integers(-400, 400), min_size=1, max_size=40, unique=True))
def test_any_thresholds(positions):
    middles = torch.tensor(sorted(positions)).float() / 400
    grid = level_grid(middles)
    values = torch.cat([around(middles), torch.linspace(-1.5, 1.5, 999)])
    assert torch.equal(grid.codes(values), torch.bucketize(values, middles))


def test_levels_too_close_to_part_are_refused():
    with pytest.raises(ValueError, match="closer than"):
        level_grid(torch.tensor([0.5, 0.5 + 1e-6]))
