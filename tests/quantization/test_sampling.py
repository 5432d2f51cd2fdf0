"""An estimate is the exact errors of the blocks drawn, and the blocks stand for all."""

import pytest
import torch

from coalora_lib.quantization import quantize
from coalora_lib.quantization.blocks import block_scales, to_blocks
from coalora_lib.quantization.choices import FIELDS
from coalora_lib.quantization.errors import error_parts
from coalora_lib.quantization.sampling import BLOCK, FEWEST, draw, sample_size
from coalora_lib.spaces import NORMAL_FLOAT, get_space

SHARE = 1 / 12


def drawn(weight, importance=None):
    """What :func:`estimate` draws."""
    maxima = [block_scales(to_blocks(weight, size)) for size in FIELDS["block_size"]]
    roots = None if importance is None else to_blocks(importance.sqrt(), BLOCK)
    offsets = [scales.min() for scales in maxima]
    blocks = to_blocks(weight, BLOCK)
    return draw(sample_size(len(blocks), SHARE), blocks, roots, maxima, offsets)


def estimate(weight, space="nf", importance=None):
    ((_, compute),) = error_parts(weight, space, importance, sample=SHARE)
    return compute()


def uneven(*shape):
    """Rows and columns of unlike size, as in a trained model, and some weights far out."""
    weight = torch.randn(shape) * (0.6 * torch.randn(shape[0], 1)).exp()
    weight *= (0.6 * torch.randn(shape[1])).exp()
    return torch.where(torch.rand(shape) < 0.001, 15 * weight, weight)


@pytest.mark.parametrize("space", ["nf", "int"])
@pytest.mark.parametrize("weighed", [False, True], ids=["all alike", "importance"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_block_has_the_error_that_it_has_in_the_whole_weight(space, weighed, dtype):
    weight = uneven(181, 147).to(dtype)  # the last block is not full
    importance = torch.rand(weight.shape) if weighed else None
    chosen, sample = drawn(weight, importance)
    found = estimate(weight, space, importance)
    for row, choice in list(enumerate(get_space(space).choices))[::29]:
        left = (quantize(weight, choice).dequantize(torch.float32) - weight.float()).double()
        squares = left.square() if importance is None else importance * left.square()
        each = to_blocks(squares, BLOCK).double().sum(1)[chosen]
        expected = (sample.roots.double().square() * each).sum()
        assert found[row] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("blocks", "share", "wanted"),
    [(2 * FEWEST, 0.1, 2 * FEWEST), (400, 0.1, FEWEST), (2400, 0.1, 240), (2400, 0.5, 2400)],
    ids=["a small weight", "at least", "a share", "half is all"],
)
def test_how_many_blocks_are_drawn(blocks, share, wanted):
    assert sample_size(blocks, share) == wanted


def test_blocks_are_drawn_from_everywhere():
    chosen, sample = drawn(torch.randn(3600, BLOCK))
    assert [len(peaks) for peaks in sample.peaks[0]] == [300 * BLOCK // 16] * 3
    assert len(sample.roots) == 300
    assert (chosen.diff() >= 0).all()
    for tenth in range(10):
        assert 20 <= ((chosen >= 360 * tenth) & (chosen < 360 * (tenth + 1))).sum() <= 40


def test_blocks_far_out_are_drawn_and_do_not_count_twice():
    weight = torch.randn(1000, BLOCK)
    weight[437] *= 100
    chosen, sample = drawn(weight)
    assert 437 in chosen
    squares = weight.double().square().sum(1)
    found = (sample.roots.double().square() * squares[chosen]).sum()
    assert found == pytest.approx(squares.sum().item(), rel=0.1)


@pytest.mark.parametrize("shape", [(192, 128), (8, 8)], ids=str)
def test_small_weights_are_looked_at_in_full(shape):
    weight = torch.randn(shape)
    assert torch.equal(estimate(weight), NORMAL_FLOAT.errors(weight))


@pytest.mark.parametrize("value", [0.0, 0.3], ids=["zeros", "all alike"])
def test_weights_without_spread(value):
    weight = torch.full((400, 64), value)
    assert torch.allclose(estimate(weight), torch.zeros(432, dtype=torch.float64), atol=1e-6)
    assert (estimate(uneven(400, 64), importance=torch.zeros(400, 64)) == 0).all()


def test_the_same_estimate_at_every_call():
    weight = uneven(400, 64)
    before = torch.get_rng_state()
    assert torch.equal(estimate(weight), estimate(weight))
    assert torch.equal(torch.get_rng_state(), before)


def test_pieces_and_a_sample_exclude_each_other():
    with pytest.raises(ValueError, match="pieces=1 and a sample cannot be given together"):
        next(error_parts(torch.ones(4), "nf", pieces=1, sample=SHARE))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_sample_on_a_gpu():
    weight = uneven(300, 256)
    torch.testing.assert_close(estimate(weight.cuda()).cpu(), estimate(weight), rtol=1e-3, atol=0)
