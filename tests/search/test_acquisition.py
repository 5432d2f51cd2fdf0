import pytest
import torch
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
from botorch.models.model import Model
from botorch.posteriors import GPyTorchPosterior
from botorch.utils.multi_objective.box_decompositions import NondominatedPartitioning
from gpytorch.distributions import MultitaskMultivariateNormal
from linear_operator.operators import DiagLinearOperator

from coalora_lib.search import expected_hypervolume_improvement, hypervolume, pareto_front


def setting(seed, size):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return draw(size, 2), draw(7), 0.02 + 0.3 * draw(7), 1.2 * draw(7)


class Known(Model):
    """A posterior given in advance: the negated loss, and negated bits of vanishing variance."""

    def __init__(self, mean, std, bits):
        super().__init__()
        self.values, self.std = torch.stack([-mean, -bits], dim=1), std

    @property
    def num_outputs(self):
        return 2

    def posterior(self, X, **_):
        variance = torch.stack([self.std**2, torch.full_like(self.std, 1e-14)], dim=1)
        return GPyTorchPosterior(
            MultitaskMultivariateNormal(self.values[:, None], DiagLinearOperator(variance))
        )


@pytest.mark.parametrize("size", [1, 2, 6, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_botorchs_analytic_form(seed, size):
    front, mean, std, bits = setting(seed, size)
    reference = (1.1, 1.1)
    bits = bits.clamp(max=1.05)
    worst = -torch.tensor(reference, dtype=torch.float64)
    theirs = ExpectedHypervolumeImprovement(
        Known(mean, std, bits),
        worst.tolist(),
        NondominatedPartitioning(worst, -front),
    )(torch.zeros(7, 1, 1, dtype=torch.float64))
    ours = expected_hypervolume_improvement(mean, std, bits, front, reference)
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-6)


def test_equals_monte_carlo():
    front, mean, std, bits = setting(3, 5)
    reference = (1.0, 1.0)
    ours = expected_hypervolume_improvement(mean, std, bits, front, reference)
    before = hypervolume(front, reference)
    draws = torch.randn(4000, dtype=torch.float64)
    for i in range(2):
        gains = torch.tensor(
            [
                hypervolume(torch.cat([front, torch.stack([y, bits[i]])[None]]), reference) - before
                for y in mean[i] + std[i] * draws
            ]
        )
        assert abs(ours[i] - gains.mean()) < 4 * gains.std() / len(draws) ** 0.5 + 1e-12


def test_certain_candidates_give_the_improvement_itself():
    front, mean, _, bits = setting(4, 6)
    reference = (1.0, 1.0)
    ours = expected_hypervolume_improvement(mean, torch.zeros(7), bits, front, reference)
    for value, y, b in zip(ours, mean, bits, strict=True):
        with_it = torch.cat([front, torch.stack([y, b])[None]])
        gain = hypervolume(with_it, reference) - hypervolume(front, reference)
        assert value.item() == pytest.approx(gain, abs=1e-12)


def test_empty_front_and_candidates_beyond_the_reference():
    one = torch.ones(1)
    empty = torch.empty(0, 2)
    certain = expected_hypervolume_improvement(0.25 * one, 0 * one, 0.5 * one, empty, (1.0, 1.0))
    assert certain.item() == pytest.approx(0.75 * 0.5)
    beyond = expected_hypervolume_improvement(0.25 * one, 0.1 * one, 2 * one, empty, (1.0, 1.0))
    assert beyond.item() == 0


def test_dominated_rows_change_nothing():
    front, mean, std, bits = setting(5, 30)
    alone = front[pareto_front(front)]
    torch.testing.assert_close(
        expected_hypervolume_improvement(mean, std, bits, front, (1.0, 1.0)),
        expected_hypervolume_improvement(mean, std, bits, alone, (1.0, 1.0)),
    )
