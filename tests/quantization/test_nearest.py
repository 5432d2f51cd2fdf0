import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coalora_lib.quantization.codebooks import book_grid, code_book, level_grid, thresholds

CPU = torch.device("cpu")


def around(values):
    """The values and the float32 numbers on both sides of each."""
    up, down = torch.tensor(3.0), torch.tensor(-3.0)
    return torch.cat([values, torch.nextafter(values, up), torch.nextafter(values, down)])


@pytest.mark.parametrize("name", ["nf", "int"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_nearest_level_is_brute_force_with_ties_to_the_lower(name, bits):
    levels, middles = code_book(name, bits), thresholds(name, bits)
    grid = book_grid(name, bits, CPU)
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
