import math

import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from botorch.optim.closures import get_loss_closure_with_grads
from gpytorch.mlls import ExactMarginalLogLikelihood

from coalora_lib.search import Surrogate
from coalora_lib.search.surrogate import SHORTEST, dimension_scaled_kernel, map_closure
from tests.search.toy import CARDINALITIES, drawn, true_loss

#: One Cholesky factor against botorch's own algebra.
AS_BOTORCH = 1e-9
#: Two Cholesky factors of matrices that differ in a row.
OF_ANOTHER_FACTOR = 1e-8
#: L-BFGS-B stops where a step gains little; the loss is by the number of points.
OF_THE_FIT = 1e-2


def noisy(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return true_loss(rows) + 0.05 * torch.randn(len(rows), generator=generator)


def model_of(rows, losses, cardinalities, groups=None):
    """The botorch model of a surrogate before the fit."""
    return SingleTaskGP(
        rows / (cardinalities - 1).clamp(min=1).double(),
        losses.double()[:, None],
        covar_module=dimension_scaled_kernel(
            torch.arange(len(cardinalities)) if groups is None else groups
        ),
        outcome_transform=Standardize(1),
    )


def likelihood_of(model):
    return ExactMarginalLogLikelihood(model.likelihood, model).train()


def loss_of(model):
    likelihood = likelihood_of(model)
    closure = get_loss_closure_with_grads(likelihood, dict(likelihood.named_parameters()))
    return closure()[0].item()


@pytest.mark.parametrize("dimension", [6, 30])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alike", [False, True])
def test_the_closures_gradient_is_automatic_differentiations(dimension, seed, alike):
    cardinalities = CARDINALITIES.repeat(dimension // 6)
    rows = drawn(cardinalities, 15, seed)
    groups = torch.arange(dimension) % 3 if alike else None
    likelihood = likelihood_of(model_of(rows, noisy(rows), cardinalities, groups))
    parameters = dict(likelihood.named_parameters())
    generator = torch.Generator().manual_seed(seed)

    def uniform(parameter, low, high):
        share = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = low + (high - low) * share

    uniform(likelihood.likelihood.noise_covar.raw_noise, 1e-3, 0.5)
    uniform(likelihood.model.mean_module.raw_constant, -1.0, 1.0)
    uniform(likelihood.model.covar_module.raw_lengthscale, SHORTEST, 3.0)
    value, gradients = get_loss_closure_with_grads(likelihood, parameters)()
    value, gradients = value.detach().clone(), [gradient.clone() for gradient in gradients]
    ours, slopes = map_closure(likelihood)()
    torch.testing.assert_close(ours, value, atol=AS_BOTORCH, rtol=AS_BOTORCH)
    assert len(slopes) == len(gradients) == len(parameters)
    for slope, gradient, parameter in zip(slopes, gradients, parameters.values(), strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(slope, gradient, atol=AS_BOTORCH, rtol=AS_BOTORCH)
        assert torch.equal(parameter.grad, slope)


@pytest.mark.parametrize("dimension", [6, 30])
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_as_good_as_botorchs(dimension, seed):
    cardinalities = CARDINALITIES.repeat(dimension // 6)
    rows = drawn(cardinalities, 25, seed)
    losses = noisy(rows, seed)
    theirs = model_of(rows, losses, cardinalities)
    before = loss_of(theirs)
    fit_gpytorch_mll(likelihood_of(theirs))
    ours = Surrogate(rows, losses, cardinalities).model
    assert loss_of(ours) <= loss_of(theirs) + OF_THE_FIT
    assert loss_of(ours) < before - OF_THE_FIT


@pytest.mark.parametrize("dimension", [6, 30])
@pytest.mark.parametrize("alike", [False, True])
def test_predictions_are_the_posterior_of_the_model(dimension, alike):
    cardinalities = CARDINALITIES.repeat(dimension // 6)
    rows = drawn(cardinalities, 20)
    groups = torch.arange(dimension) % 6 if alike else None
    surrogate = Surrogate(rows, noisy(rows), cardinalities, groups)
    assert len(surrogate.length_scales) == dimension
    assert len(surrogate.length_scales.unique()) <= (6 if alike else dimension)
    asked = torch.cat([drawn(cardinalities, 30, 1), rows])
    mean, std = surrogate.predict(asked)
    with torch.no_grad():
        posterior = surrogate.model.posterior(surrogate.scale(asked)[:, None])
    assert mean.std() > 0
    torch.testing.assert_close(mean, posterior.mean.flatten(), atol=AS_BOTORCH, rtol=AS_BOTORCH)
    torch.testing.assert_close(
        std, posterior.variance.flatten().sqrt(), atol=AS_BOTORCH, rtol=AS_BOTORCH
    )


def test_the_surrogate_learns_and_is_unsure_elsewhere():
    rows = torch.unique(drawn(CARDINALITIES, 24), dim=0)
    losses = true_loss(rows)
    surrogate = Surrogate(rows, losses, CARDINALITIES)
    mean, std = surrogate.predict(rows)
    assert (mean - losses).abs().mean() < 0.2 * losses.std()
    grid = torch.cartesian_prod(*(torch.arange(int(n)) for n in CARDINALITIES))
    predicted, _ = surrogate.predict(grid)
    correlation = torch.corrcoef(torch.stack([predicted, true_loss(grid)]))[0, 1]
    assert correlation > 0.8
    assert surrogate.predict(grid)[1].max() > std.max()


def test_the_kernel_is_the_product_of_the_factors():
    surrogate = Surrogate(drawn(CARDINALITIES, 12), noisy(drawn(CARDINALITIES, 12)), CARDINALITIES)
    asked = drawn(CARDINALITIES, 5, 3)
    product = surrogate.log_factors()[torch.arange(len(CARDINALITIES)), asked].sum(1).exp()
    with torch.no_grad():
        expected = surrogate.model.covar_module(
            surrogate.scale(asked), surrogate.scale(surrogate.configurations)
        ).to_dense()
    torch.testing.assert_close(product, expected, atol=AS_BOTORCH, rtol=AS_BOTORCH)


def test_leaving_one_out_is_conditioning_on_the_others():
    """By hand, with the kernel of the fitted model; nothing is fitted anew."""
    rows = drawn(CARDINALITIES, 15)
    losses = noisy(rows)
    surrogate = Surrogate(rows, losses, CARDINALITIES)
    model = surrogate.model
    points = surrogate.scale(rows)
    with torch.no_grad():
        kernel = model.covar_module(points).to_dense()
        noise, constant = model.likelihood.noise.item(), model.mean_module.constant.item()
    center, unit = losses.double().mean(), losses.double().std()
    targets = (losses.double() - center) / unit
    mean, std = surrogate.leave_one_out()
    for i in range(len(rows)):
        others = torch.arange(len(rows)) != i
        inner = kernel[others][:, others] + noise * torch.eye(len(rows) - 1, dtype=torch.float64)
        cross = kernel[others, i]
        predicted = constant + cross @ torch.linalg.solve(inner, targets[others] - constant)
        variance = 1 + noise - cross @ torch.linalg.solve(inner, cross)
        expected = (center + unit * predicted).item(), (unit * variance.sqrt()).item()
        assert mean[i].item() == pytest.approx(expected[0], abs=OF_ANOTHER_FACTOR)
        assert std[i].item() == pytest.approx(expected[1], abs=OF_ANOTHER_FACTOR)


def test_conditioning_keeps_the_mean_and_shrinks_the_uncertainty():
    rows = drawn(CARDINALITIES, 20)
    surrogate = Surrogate(rows, noisy(rows), CARDINALITIES)
    grid = torch.cartesian_prod(*(torch.arange(int(n)) for n in CARDINALITIES))
    mean, std = surrogate.predict(grid)
    added = grid[std.topk(2).indices]
    conditioned = surrogate.condition_on(added)
    after_mean, after_std = conditioned.predict(grid)
    torch.testing.assert_close(after_mean, mean, atol=OF_ANOTHER_FACTOR, rtol=0)
    assert (after_std <= std + OF_ANOTHER_FACTOR).all()
    assert (conditioned.predict(added)[1] < 0.5 * surrogate.predict(added)[1]).all()
    assert len(conditioned.configurations) == len(rows) + 2
    again = surrogate.predict(grid)
    assert torch.equal(again[0], mean)
    assert torch.equal(again[1], std)


def test_conditioning_in_turn_is_conditioning_at_once():
    rows = drawn(CARDINALITIES, 20)
    surrogate = Surrogate(rows, noisy(rows), CARDINALITIES)
    added, grid = drawn(CARDINALITIES, 3, 4), drawn(CARDINALITIES, 50, 5)
    together = surrogate.condition_on(added).predict(grid)
    in_turn = surrogate
    for row in added:
        in_turn = in_turn.condition_on(row[None])
    torch.testing.assert_close(
        in_turn.predict(grid), together, atol=OF_ANOTHER_FACTOR, rtol=OF_ANOTHER_FACTOR
    )


def degenerate(kind):
    rows = drawn(CARDINALITIES, 12)
    if kind == "duplicates":
        rows = rows[:4].repeat(3, 1)
    if kind == "constant coordinate":
        rows[:, 0] = 2
    if kind == "all one point":
        rows = rows[:1].repeat(12, 1)
    losses = torch.full((len(rows),), 0.7).double() if kind == "constant losses" else noisy(rows)
    return (rows[:2], losses[:2]) if kind == "two" else (rows, losses)


@pytest.mark.parametrize(
    "kind", ["duplicates", "constant losses", "constant coordinate", "all one point", "two"]
)
def test_degenerate_sets_are_fitted_and_predicted_from(kind):
    """All of them with a coordinate that has one value."""
    rows, losses = degenerate(kind)
    surrogate = Surrogate(rows, losses, CARDINALITIES)
    grid = torch.cartesian_prod(*(torch.arange(int(n)) for n in CARDINALITIES))
    for mean, std in (surrogate.predict(grid), surrogate.leave_one_out()):
        assert mean.isfinite().all()
        assert (std >= 0).all()
        assert std.isfinite().all()
    assert (surrogate.length_scales >= SHORTEST).all()
    mean, _ = surrogate.predict(rows)
    spread = (losses.max() - losses.min()).item()
    assert (mean - losses.mean()).abs().max() <= spread + OF_ANOTHER_FACTOR


def test_losses_of_any_unit_are_predicted_in_it():
    rows = drawn(CARDINALITIES, 20)
    losses = noisy(rows).double()
    grid = drawn(CARDINALITIES, 30, 1)
    mean, std = Surrogate(rows, losses, CARDINALITIES).predict(grid)
    moved_mean, moved_std = Surrogate(rows, 1000 * losses - 7, CARDINALITIES.tolist()).predict(grid)
    torch.testing.assert_close(moved_mean, 1000 * mean - 7, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(moved_std, 1000 * std, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("rows", "losses", "message"),
    [
        (torch.zeros(1, 6), torch.zeros(1), "two scored configurations, got 1"),
        (torch.zeros(2, 6), torch.tensor([0.0, math.nan]), "loss of configuration 1 is nan"),
        (torch.zeros(2, 6), torch.tensor([math.inf, 0.0]), "loss of configuration 0 is inf"),
        (torch.zeros(2, 5), torch.zeros(2), r"must be \(2, 6\) and .*, got \(2, 5\)"),
        (torch.zeros(3, 6), torch.zeros(2), r"must be \(2, 6\) and .*, got \(3, 6\)"),
        (torch.zeros(12), torch.zeros(2), r"must be \(2, 6\) and .*, got \(12,\)"),
        (torch.zeros(2, 6), torch.zeros(2, 1), r"and losses one for each, got .* \(2, 1\)"),
        (torch.full((2, 6), 0.5), torch.zeros(2), "0 is 0.5, which is not an integer"),
        (torch.full((2, 6), math.nan), torch.zeros(2), "0 is nan, which is not an integer"),
        (
            torch.tensor([[0] * 6, [0, 0, 3, 0, 0, 0]]),
            torch.zeros(2),
            "coordinate 2 of configuration 1 is 3; allowed: 0 to 2",
        ),
        (
            torch.tensor([[0, -1, 0, 0, 0, 0], [0] * 6]),
            torch.zeros(2),
            "coordinate 1 of configuration 0 is -1; allowed: 0 to 3",
        ),
    ],
    ids=[
        *("one", "nan", "infinite", "width", "length", "flat", "column", "fraction", "no-number"),
        *("above", "below"),
    ],
)
def test_bad_sets_are_refused(rows, losses, message):
    with pytest.raises(ValueError, match=message):
        Surrogate(rows, losses, CARDINALITIES)


@pytest.mark.parametrize("groups", [[0, 1, 2], [0, 1, 1, 3, 3, 0], [-1, 0, 1, 2, 3, 4]])
def test_groups_that_do_not_fit_are_refused(groups):
    rows = drawn(CARDINALITIES, 5)
    with pytest.raises(ValueError, match="groups must be 6 integers from 0 with none left out"):
        Surrogate(rows, noisy(rows), CARDINALITIES, groups)
