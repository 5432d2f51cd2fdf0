from dataclasses import replace

import pytest
import torch

from coalora_lib.decomposition import lowrank_plus_quantized, truncated_svd
from coalora_lib.quantization import BlockwiseChoice, quantize

COARSE = BlockwiseChoice(2, 4, "fp16", 64, 64)


@pytest.fixture
def weight():
    """A matrix with a few strong directions, as fine-tuned weights have."""
    return torch.randn(48, 96) + torch.randn(48, 3) @ torch.randn(3, 96)


@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_beats_quantization_alone_and_returns_the_best_iterate(weight, svd):
    found = lowrank_plus_quantized(weight, COARSE, rank=4, svd=svd)
    error = (found.dequantize() - weight).norm().item()
    assert error == pytest.approx(found.error, rel=1e-4)
    assert found.error == min(found.errors)
    assert error < 0.8 * (quantize(weight, COARSE).dequantize() - weight).norm().item()
    assert found.l1.shape == (48, 4)
    assert found.l2.shape == (4, 96)


def test_the_last_iterate_is_the_first_that_does_not_improve(weight):
    errors = lowrank_plus_quantized(weight, COARSE, rank=4, max_iterations=50).errors
    assert len(errors) < 50
    assert list(errors[:-1]) == sorted(errors[:-1], reverse=True)
    assert errors[-1] >= errors[-2]


def test_more_iterations_never_end_worse(weight):
    found = [lowrank_plus_quantized(weight, COARSE, 4, max_iterations=n) for n in (1, 2, 5, 20)]
    errors = [split.error for split in found]
    assert errors == sorted(errors, reverse=True)


def test_one_iteration_is_the_definition(weight):
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    low_rank = u[:, :4] * s[:4] @ vh[:4]
    quantized = quantize(weight - low_rank, replace(COARSE, code_book="int")).dequantize()
    found = lowrank_plus_quantized(
        weight, replace(COARSE, code_book="int"), rank=4, space="int", max_iterations=1
    )
    torch.testing.assert_close(found.l1 @ found.l2, low_rank, atol=1e-4, rtol=1e-4)
    assert found.error == pytest.approx((weight - low_rank - quantized).norm().item(), rel=1e-3)


def test_importance_moves_the_error_off_what_matters(weight):
    importance = torch.full_like(weight, 0.01)
    importance[:8] = 1
    plain = lowrank_plus_quantized(weight, COARSE, rank=4)
    weighted = lowrank_plus_quantized(weight, COARSE, rank=4, importance=importance)
    residuals = [(found.dequantize() - weight)[:8].norm() for found in (plain, weighted)]
    assert residuals[1] < 0.9 * residuals[0]


def test_equal_importance_changes_nothing(weight):
    plain = lowrank_plus_quantized(weight, COARSE, rank=4)
    weighted = lowrank_plus_quantized(
        weight, COARSE, rank=4, importance=torch.full_like(weight, 7.0)
    )
    assert weighted.error == pytest.approx(plain.error, rel=1e-3)


def test_the_same_seed_gives_the_same_parts_and_leaves_the_generator_alone(weight):
    state = torch.random.get_rng_state()
    first, second = (
        lowrank_plus_quantized(weight, COARSE, rank=4, svd="randomized", seed=3) for _ in range(2)
    )
    assert torch.equal(first.l1, second.l1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_parts_keep_the_weights_dtype(weight):
    found = lowrank_plus_quantized(weight.bfloat16(), COARSE, rank=2)
    assert found.l1.dtype == found.l2.dtype == found.dequantize().dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 49}, "rank=49"),
        ({"weight": torch.ones(4)}, r"shape \(4,\)"),
        ({"svd": "fast"}, "svd='fast' is not known; allowed: exact, randomized"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"importance": torch.ones(2, 2)}, r"importance is \(2, 2\), not \(48, 96\)"),
        ({"importance": torch.zeros(48, 96)}, "positive, finite mean"),
    ],
    ids=["rank-0", "rank-large", "vector", "svd", "iterations", "shape", "zeros"],
)
def test_bad_input_is_named(weight, changes, message):
    arguments = {"weight": weight, "choice": COARSE, "rank": 2} | changes
    with pytest.raises(ValueError, match=message):
        lowrank_plus_quantized(**arguments)


@pytest.mark.parametrize("shape", [(2, 3, 48, 96), (2, 3, 96, 48)])
@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_a_batch_is_split_as_its_members_one_by_one(shape, svd):
    many = torch.randn(shape)
    left, right = truncated_svd(many, 4, svd)
    for row in range(2):
        for column in range(3):
            l1, l2 = truncated_svd(many[row, column], 4, svd)
            torch.testing.assert_close(
                left[row, column] @ right[row, column], l1 @ l2, rtol=0, atol=1e-4
            )
