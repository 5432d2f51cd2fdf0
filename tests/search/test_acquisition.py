import itertools
import math

import mpmath
import pytest
import torch
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
from botorch.models.model import Model
from botorch.posteriors import GPyTorchPosterior
from botorch.utils.multi_objective.box_decompositions import NondominatedPartitioning
from gpytorch.distributions import MultitaskMultivariateNormal
from linear_operator.operators import DiagLinearOperator

from coalora_lib.search import expected_hypervolume_improvement, hypervolume, pareto_front
from coalora_lib.search.acquisition import expected_improvement, log_expected_improvement

#: botorch has both objectives uncertain; gpytorch has no smaller variance than this.
LEAST_VARIANCE = 1e-10
#: What that much doubt about the cost changes.
AS_BOTORCH = 1e-6
#: Two ways to sum the same areas in float64.
ROUNDING = 1e-12
#: Of a logarithm: what is left where the two forms with erfcx and its series meet.
OF_A_LOGARITHM = 2e-9
#: And of its size, z^2 / 2: float64.
OF_ITS_SIZE = 1e-15
CORNER = (1.0, 1.0)


def setting(seed, size):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return draw(size, 2), draw(7), 0.02 + 0.3 * draw(7), 1.2 * draw(7)


def random_reference(seed):
    """Sometimes behind all of the front, sometimes before a part of it."""
    generator = torch.Generator().manual_seed(100 + seed)
    return tuple((0.4 + 0.8 * torch.rand(2, generator=generator, dtype=torch.float64)).tolist())


class Known(Model):
    """A posterior given in advance: the negated loss, and negated cost of vanishing variance."""

    def __init__(self, mean, std, cost):
        super().__init__()
        self.values, self.std = torch.stack([-mean, -cost], dim=1), std

    @property
    def num_outputs(self):
        return 2

    def posterior(self, X, **_):
        variance = torch.stack([self.std**2, torch.full_like(self.std, LEAST_VARIANCE)], dim=1)
        return GPyTorchPosterior(
            MultitaskMultivariateNormal(self.values[:, None], DiagLinearOperator(variance))
        )


def botorchs(mean, std, cost, front, reference):
    worst = -torch.tensor(reference, dtype=torch.float64)
    form = ExpectedHypervolumeImprovement(
        Known(mean, std, cost), worst.tolist(), NondominatedPartitioning(worst, -front)
    )
    return form(torch.zeros(len(mean), 1, 1, dtype=torch.float64)).detach()


@pytest.mark.parametrize("size", [0, 1, 2, 6, 20])
@pytest.mark.parametrize("seed", range(6))
def test_equals_botorchs_analytic_form(seed, size):
    front, mean, std, cost = setting(seed, size)
    reference = random_reference(seed)
    ours = expected_hypervolume_improvement(mean, std, cost, front, reference)
    theirs = botorchs(mean, std, cost, front, reference)
    assert ours.max() > 0
    torch.testing.assert_close(ours, theirs, atol=AS_BOTORCH, rtol=AS_BOTORCH)


@pytest.mark.parametrize(
    "front", [[[1.5, 0.2]], [[0.2, 1.5]], [[1.0, 0.5]], [[1.5, 0.2], [0.2, 1.5], [2.0, 2.0]]]
)
def test_a_front_beyond_the_reference_is_none(front):
    front = torch.tensor(front, dtype=torch.float64)
    _, mean, std, cost = setting(7, 1)
    ours = expected_hypervolume_improvement(mean, std, cost, front, CORNER)
    nothing = expected_hypervolume_improvement(mean, std, cost, front[:0], CORNER)
    assert torch.equal(ours, nothing)
    theirs = botorchs(mean, std, cost, front, CORNER)
    torch.testing.assert_close(ours, theirs, atol=AS_BOTORCH, rtol=AS_BOTORCH)


def test_an_empty_front_leaves_the_expected_improvement_over_the_reference():
    """Jones' closed form, once more and by another's normal distribution."""
    _, mean, std, cost = setting(8, 1)
    ours = expected_hypervolume_improvement(mean, std, cost, torch.empty(0, 2), CORNER)
    normal = torch.distributions.Normal(0.0, 1.0)
    z = (1 - mean) / std
    improvement = (1 - mean) * normal.cdf(z) + std * normal.log_prob(z).exp()
    torch.testing.assert_close(
        ours, (1 - cost).clamp(min=0) * improvement, atol=ROUNDING, rtol=ROUNDING
    )
    assert (ours == 0).any() == (cost >= 1).any()


def test_dominated_candidates_improve_by_chance_only():
    front = torch.tensor([[0.3, 0.2]], dtype=torch.float64)
    mean, cost = torch.tensor([0.6], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    certain, unsure, surer = (
        expected_hypervolume_improvement(mean, std * torch.ones(1), cost, front, CORNER).item()
        for std in (0.0, 0.3, 0.1)
    )
    assert certain == 0
    assert unsure > surer > 0
    theirs = botorchs(mean, 0.3 * torch.ones(1, dtype=torch.float64), cost, front, CORNER)
    assert unsure == pytest.approx(theirs.item(), abs=AS_BOTORCH)


def steps_of(front, reference, cost):
    """Width and height of each step of the least loss to the right of ``cost``, by a plain loop."""
    edges = sorted({cost, reference[1], *front[:, 1].clamp(cost, reference[1]).tolist()})
    steps = []
    for left, right in itertools.pairwise(edges):
        reached = front[front[:, 1] <= left, 0].tolist()
        steps.append((right - left, min([*reached, reference[0]])))
    return steps


def gains_of(losses, front, reference, cost):
    """The improvement of (k,) certain losses at that cost."""
    return sum(
        (
            width * (height - losses).clamp(min=0)
            for width, height in steps_of(front, reference, cost)
        ),
        torch.zeros_like(losses),
    )


@pytest.mark.parametrize("seed", range(3))
def test_equals_monte_carlo(seed):
    front, mean, std, cost = setting(20 + seed, 5)
    ours = expected_hypervolume_improvement(mean, std, cost, front, CORNER)
    draws = torch.randn(1_000_000, dtype=torch.float64)
    before = hypervolume(front, CORNER)
    for i in range(len(mean)):
        losses = mean[i] + std[i] * draws
        gains = gains_of(losses, front, CORNER, min(cost[i].item(), 1.0))
        for loss, gain in zip(losses[:50], gains[:50], strict=True):
            with_it = torch.cat([front, torch.stack([loss, cost[i]])[None]])
            assert gain.item() == pytest.approx(hypervolume(with_it, CORNER) - before, abs=ROUNDING)
        assert abs(ours[i] - gains.mean()) <= 4 * gains.std() / len(draws) ** 0.5 + ROUNDING


def test_certain_candidates_give_the_improvement_itself():
    front, mean, _, cost = setting(4, 6)
    ours = expected_hypervolume_improvement(mean, torch.zeros(7), cost, front, CORNER)
    logs = expected_hypervolume_improvement(mean, torch.zeros(7), cost, front, CORNER, log=True)
    assert (ours > 0).any()
    assert (ours == 0).any()
    for value, log, y, b in zip(ours, logs, mean, cost, strict=True):
        with_it = torch.cat([front, torch.stack([y, b])[None]])
        gain = hypervolume(with_it, CORNER) - hypervolume(front, CORNER)
        assert value.item() == pytest.approx(gain, abs=ROUNDING)
        assert log.exp().item() == pytest.approx(gain, abs=ROUNDING)


def test_candidates_beyond_the_reference_in_bits_add_nothing():
    one, empty = torch.ones(1), torch.empty(0, 2)
    beyond = expected_hypervolume_improvement(0.25 * one, 0.1 * one, 2 * one, empty, CORNER)
    assert beyond.item() == 0


def test_dominated_rows_change_nothing():
    front, mean, std, cost = setting(5, 30)
    alone = front[pareto_front(front)]
    assert len(alone) < len(front)
    assert torch.equal(
        expected_hypervolume_improvement(mean, std, cost, front, CORNER),
        expected_hypervolume_improvement(mean, std, cost, alone, CORNER),
    )


@pytest.mark.parametrize("size", [0, 1, 6, 20])
@pytest.mark.parametrize("seed", range(3))
def test_the_logarithm_is_that_of_the_improvement(seed, size):
    front, mean, std, cost = setting(seed, size)
    reference = random_reference(seed)
    plain = expected_hypervolume_improvement(mean, std, cost, front, reference)
    logs = expected_hypervolume_improvement(mean, std, cost, front, reference, log=True)
    torch.testing.assert_close(logs, plain.log(), atol=OF_A_LOGARITHM, rtol=OF_A_LOGARITHM)


def exact_improvement(z):
    """h(z) = z Phi(z) + phi(z), to fifty digits."""
    with mpmath.workdps(80):
        z = mpmath.mpf(z)
        return z * mpmath.ncdf(z) + mpmath.npdf(z)


@pytest.mark.parametrize(
    "z",
    [8, 1, 0, -0.5, -0.999999, -1.000001, -5, -30, -50, -300, -999.99, -1000.01, -2000, -1e5],
)
@pytest.mark.parametrize("std", [1.0, 1e-5])
def test_the_logarithm_is_exact_however_small_the_improvement(z, std):
    gain = torch.tensor([z * std], dtype=torch.float64)
    std = torch.tensor([std], dtype=torch.float64)
    with mpmath.workdps(80):
        z = mpmath.mpf(gain.item()) / mpmath.mpf(std.item())
        exact = float(mpmath.log(exact_improvement(z) * mpmath.mpf(std.item())))
    log = log_expected_improvement(gain, std).item()
    assert log == pytest.approx(exact, abs=OF_A_LOGARITHM, rel=OF_ITS_SIZE)
    if exact > math.log(torch.finfo(torch.float64).tiny):
        improvement = expected_improvement(gain, std).item()
        # The plain form cancels: its error is relative to phi(z), z^2 times the improvement.
        assert improvement == pytest.approx(math.exp(exact), rel=ROUNDING * max(1, float(z) ** 2))


def test_the_logarithm_of_an_improvement_below_any_float():
    """Widths and several steps come in as they do where nothing underflows."""
    front = torch.tensor([[0.5, 0.2], [0.3, 0.6]], dtype=torch.float64)
    mean = torch.tensor([0.5 + 50 * 0.01], dtype=torch.float64)
    std = torch.tensor([0.01], dtype=torch.float64)
    cost = torch.tensor([0.1], dtype=torch.float64)
    log = expected_hypervolume_improvement(mean, std, cost, front, (0.6, 1.0), log=True).item()
    with mpmath.workdps(80):
        exact = sum(
            mpmath.mpf(width)
            * std.item()
            * exact_improvement((mpmath.mpf(height) - mean.item()) / std.item())
            for width, height in steps_of(front, (0.6, 1.0), 0.1)
        )
        exact = float(mpmath.log(exact))
    assert exact < -750
    assert log == pytest.approx(exact, rel=OF_A_LOGARITHM)


def test_the_logarithm_is_minus_infinity_where_nothing_can_be_gained():
    front = torch.tensor([[0.3, 0.2]], dtype=torch.float64)
    mean, std = torch.tensor([0.1, 0.6, 0.1]), torch.tensor([0.1, 0.0, 0.1])
    cost = torch.tensor([1.0, 0.5, 0.9])
    logs = expected_hypervolume_improvement(mean, std, cost, front, CORNER, log=True)
    assert logs[:2].tolist() == [-math.inf, -math.inf]
    assert logs[2].isfinite()


def test_the_logarithm_orders_what_the_improvement_cannot():
    front = torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    mean = torch.linspace(0.5, 0.9, 20, dtype=torch.float64)
    std, cost = torch.full_like(mean, 1e-3), torch.full_like(mean, 0.4)
    plain = expected_hypervolume_improvement(mean, std, cost, front, CORNER)
    logs = expected_hypervolume_improvement(mean, std, cost, front, CORNER, log=True)
    assert (plain == 0).all()
    assert logs.isfinite().all()
    assert (logs.diff() < 0).all()


@pytest.mark.parametrize(
    ("mean", "std", "cost", "message"),
    [
        ([0.1, math.nan], [0.1, 0.1], [0.5, 0.5], "mean of candidate 1 is nan"),
        ([0.1, 0.1], [math.nan, 0.1], [0.5, 0.5], "std of candidate 0 is nan"),
        ([0.1, 0.1], [0.1, 0.1], [0.5, math.nan], "cost of candidate 1 is nan"),
        ([0.1, 0.1], [0.1, -0.5], [0.5, 0.5], r"std of candidate 1 is -0\.5; it must not"),
        ([0.1, 0.1], [0.1], [0.5, 0.5], r"must be of one shape \(n,\), got \(2,\), \(1,\)"),
        ([[0.1]], [[0.1]], [[0.5]], r"must be of one shape \(n,\), got \(1, 1\)"),
    ],
    ids=["nan mean", "nan std", "nan cost", "negative std", "shapes", "matrices"],
)
def test_bad_candidates_are_refused(mean, std, cost, message):
    given = (torch.tensor(values) for values in (mean, std, cost))
    with pytest.raises(ValueError, match=message):
        expected_hypervolume_improvement(*given, torch.empty(0, 2), CORNER)
