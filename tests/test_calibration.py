"""The closed forms against brute force."""

from itertools import pairwise

import pytest
import torch

from coalora_lib import calibration
from coalora_lib.calibration import output_svd, reduced_rank_regression, ridge_factor

torch.manual_seed(0)
SHAPES = [(12, 20), (20, 12), (16, 16)]


def inputs(width, tokens=400, seed=0, dead=0, twin=False):
    """(tokens, width) float64: correlated, of unequal size; some always zero, two always equal."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, width, generator=generator, dtype=torch.float64) @ mixing
    x = x * torch.linspace(0.1, 3, width, dtype=torch.float64)
    x[:, :dead] = 0
    if twin:
        x[:, -1] = x[:, -2]
    return x


def by_gradient(x, missing, rank, metric=None, steps=4000):
    """|| (E - X R^T L^T) metric ||^2 / n, minimised over both factors from a random start."""
    generator = torch.Generator().manual_seed(1)
    out, width = missing.shape[1], x.shape[1]
    metric = torch.eye(out, dtype=torch.float64) if metric is None else metric
    left, right = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).div(4).requires_grad_()
        for shape in ((out, rank), (rank, width))
    )
    optimizer = torch.optim.LBFGS([left, right], max_iter=steps, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = ((missing - x @ right.T @ left.T) @ metric).square().sum(1).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return loss().item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["plain", "dead", "twin"])
def test_the_output_error_is_as_small_as_brute_force_makes_it(shape, kind):
    x = inputs(shape[1], dead=4 if kind == "dead" else 0, twin=kind == "twin")
    lost = torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    left, right, _ = output_svd(lost, x.T @ x / len(x), 3)
    assert left.shape == (shape[0], 3)
    assert right.shape == (3, shape[1])
    found = (x @ (lost - left @ right).T).square().sum(1).mean().item()
    assert found == pytest.approx(by_gradient(x, x @ lost.T, 3), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_formula_of_qera(shape):
    x = inputs(shape[1])
    lost = torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    second = x.T @ x / len(x)
    values, vectors = torch.linalg.eigh(second)
    root = vectors @ values.sqrt().diag() @ vectors.T
    u, s, vh = torch.linalg.svd(lost @ root)
    expected = u[:, :3] @ s[:3].diag() @ vh[:3] @ torch.linalg.inv(root)
    left, right, _ = output_svd(lost, second, 3)
    torch.testing.assert_close(left @ right, expected, atol=1e-6, rtol=1e-5)


def missed(shape):
    """Inputs, and outputs that miss them in part: (tokens, in) and (tokens, out)."""
    x, generator = inputs(shape[1]), torch.Generator().manual_seed(3)
    mixing = torch.randn(*shape, generator=generator, dtype=torch.float64)
    missing = x @ mixing.T
    return x, missing + torch.randn(missing.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_regression_is_as_good_as_brute_force(shape):
    x, missing = missed(shape)
    second, cross = x.T @ x / len(x), missing.T @ x / len(x)
    left, right, _ = reduced_rank_regression(cross, ridge_factor(second, 0), 3)
    found = (missing - x @ (left @ right).T).square().sum(1).mean().item()
    assert found == pytest.approx(by_gradient(x, missing, 3), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_weighted_regression_is_as_good_as_brute_force(shape):
    x, missing = missed(shape)
    gradients = inputs(shape[0], seed=4)
    metric = ridge_factor(gradients.T @ gradients / len(gradients), 0.1)
    second, cross = x.T @ x / len(x), missing.T @ x / len(x)
    left, right, _ = reduced_rank_regression(cross, ridge_factor(second, 0), 3, metric)
    found = ((missing - x @ (left @ right).T) @ metric).square().sum(1).mean().item()
    assert found == pytest.approx(by_gradient(x, missing, 3, metric), rel=1e-5)
    plain, other, _ = reduced_rank_regression(cross, ridge_factor(second, 0), 3)
    assert found < ((missing - x @ (plain @ other).T) @ metric).square().sum(1).mean().item()


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_direction_gains_what_the_error_falls_by(weighted):
    x, missing = missed((12, 20))
    metric = torch.eye(12, dtype=torch.float64)
    if weighted:
        metric = ridge_factor(torch.diag(torch.arange(12.0, dtype=torch.float64)), 0.1)
    factor, cross = ridge_factor(x.T @ x / len(x), 0), missing.T @ x / len(x)
    term = reduced_rank_regression(cross, factor, 5, metric if weighted else None)
    errors = [
        ((missing - x @ (term.left[:, :k] @ term.right[:k]).T) @ metric).square().sum(1).mean()
        for k in range(6)
    ]
    falls = torch.stack([a - b for a, b in pairwise(errors)])
    torch.testing.assert_close(term.gains, falls, rtol=1e-5, atol=0)
    assert term.gains.tolist() == sorted(term.gains.tolist(), reverse=True)


def test_with_the_models_own_inputs_the_two_are_one():
    x = inputs(20)
    lost = torch.randn(12, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    second = x.T @ x / len(x)
    one = output_svd(lost, second, 4)
    other = reduced_rank_regression(lost @ second, ridge_factor(second, 0), 4)
    torch.testing.assert_close(one[0] @ one[1], other[0] @ other[1], atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("kind", ["dead", "twin", "nothing"])
def test_inputs_without_an_inverse_are_regressed_on(kind):
    x = inputs(20, dead=4 if kind == "dead" else 0, twin=kind == "twin")
    x = x * (kind != "nothing")
    second, cross = x.T @ x / len(x), torch.ones(12, 20, dtype=torch.float64) * (kind != "nothing")
    left, right, _ = reduced_rank_regression(cross, ridge_factor(second), 2)
    assert torch.isfinite(left @ right).all()


def test_a_batch_is_its_members_one_by_one():
    x = torch.stack([inputs(20), inputs(20, seed=5)])
    lost = torch.randn(2, 12, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    second = x.mT @ x / 400
    left, right, _ = output_svd(lost, second, 3)
    for row in range(2):
        one = output_svd(lost[row], second[row], 3)
        torch.testing.assert_close(left[row] @ right[row], one[0] @ one[1])


def test_a_full_rank_gives_everything_back():
    x = inputs(16)
    lost = torch.randn(12, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    left, right, _ = output_svd(lost, x.T @ x / 400, 12)
    torch.testing.assert_close(left @ right, lost)


def test_a_mean_centres_the_inputs():
    x = inputs(20) + 3
    lost = torch.randn(12, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    centred = x - x.mean(0)
    one = output_svd(lost, x.T @ x / 400, 3, x.mean(0))
    other = output_svd(lost, centred.T @ centred / 400, 3)
    torch.testing.assert_close(one.left @ one.right, other.left @ other.right)
    torch.testing.assert_close(one.gains, other.gains)


def test_layers_that_share_a_moment_are_those_with_copies_of_it():
    second = torch.stack([x.T @ x / 400 for x in (inputs(20), inputs(20, seed=5))])[:, None]
    generator = torch.Generator().manual_seed(2)
    lost = torch.randn(2, 3, 12, 20, generator=generator, dtype=torch.float64)
    mean = torch.randn(2, 3, 20, generator=generator, dtype=torch.float64) / 9
    one = output_svd(lost, second, 4, mean)
    other = output_svd(lost, second.repeat(1, 3, 1, 1), 4, mean)
    assert one.left.shape == (2, 3, 12, 4)
    torch.testing.assert_close(one.left @ one.right, other.left @ other.right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12], ids=str)
def test_bases_are_those_of_reflections(dtype, scale, monkeypatch):
    """Over six orders of magnitude, which are those of activations with outliers."""
    x = inputs(40) * torch.logspace(0, -3, 40, dtype=torch.float64)
    lost = torch.randn(60, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    lost, second = (scale * lost).to(dtype), (x.T @ x / 400).to(dtype)
    found = output_svd(lost, second, 16)
    monkeypatch.setattr(calibration, "_cholesky_qr", lambda basis: torch.linalg.qr(basis).Q)
    expected = output_svd(lost, second, 16)
    last = torch.finfo(dtype).eps * float(expected.gains[0])
    torch.testing.assert_close(found.gains, expected.gains, rtol=1e-4, atol=20 * last)
    identity = torch.eye(16, dtype=dtype)
    torch.testing.assert_close(found.left.T @ found.left, identity, rtol=0, atol=1e-5)
    lengths = [
        ((lost - each.left @ each.right) @ x.T.to(dtype)).norm() for each in (found, expected)
    ]
    assert lengths[0] <= 1.0001 * lengths[1]


@pytest.mark.parametrize("rank", [0, 2], ids=["nothing is lost", "two directions are"])
def test_where_less_is_lost_than_the_rank_it_is_given_back(rank):
    generator = torch.Generator().manual_seed(2)
    lost = torch.randn(12, rank, generator=generator) @ torch.randn(rank, 20, generator=generator)
    x = inputs(20).float()
    left, right, gains = output_svd(lost, x.T @ x / 400, 4)
    torch.testing.assert_close(left @ right, lost, rtol=0, atol=1e-5)
    assert torch.isfinite(gains).all()
