"""`make benchmarks`: the gradient beside botorch's acquisition, and how a proposal grows."""

import pytest
import torch
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
from botorch.models import ModelListGP
from botorch.optim.fit import fit_gpytorch_mll_scipy
from botorch.utils.multi_objective.box_decompositions import NondominatedPartitioning

from coalora_lib.search import Acquisition, Surrogate, finite_differences, moves_from, propose
from coalora_lib.search.surrogate import map_closure
from coalora_lib.search.walk import one_thread
from coalora_lib.spaces import NORMAL_FLOAT, mean_bits_cost
from tests.benchmarks.timing import timed
from tests.search.test_surrogate import likelihood_of, loss_of, model_of


def problem(layers, scored):
    """A made-up task: each layer's loss falls with its weights' bits, some layers' far more."""
    generator = torch.Generator().manual_seed(0)
    cardinalities = torch.tensor(NORMAL_FLOAT.cardinalities * layers)
    columns = [torch.randint(int(n), (scored,), generator=generator) for n in cardinalities]
    rows = torch.stack(columns, dim=1)
    weights = torch.rand(layers, generator=generator, dtype=torch.float64).square()
    losses = torch.exp(-rows[:, :: len(NORMAL_FLOAT.cardinalities)].double()) @ (
        weights / weights.sum()
    )
    return rows, losses, mean_bits_cost("nf", [2**16] * layers), cardinalities


def botorchs(acquisition, losses):
    """botorch's closed form: it maximises, and has a model of the costs too."""
    surrogate = acquisition.surrogate
    rows, cardinalities = surrogate.configurations, surrogate.cardinalities
    models = [
        Surrogate(rows, -values, cardinalities).model
        for values in (losses, acquisition.cost_of(rows))
    ]
    reference = -torch.tensor(acquisition.reference, dtype=torch.float64)
    form = ExpectedHypervolumeImprovement(
        ModelListGP(*models),
        reference.tolist(),
        NondominatedPartitioning(reference, -acquisition.front),
    )

    @torch.no_grad()
    def gradient(here):
        moves = moves_from(here, cardinalities)
        rows = torch.cat([moves.applied(here), here])
        values = form(surrogate.scale(rows)[:, None])
        return finite_differences(values[:-1], values[-1:], moves, here.shape[1])

    return gradient


@pytest.mark.benchmark(group="one finite-difference gradient, 60 scored configurations")
@pytest.mark.parametrize("layers", [36, 144])
@pytest.mark.parametrize("way", ["kernel factors", "botorch, one batch"])
def test_gradient(benchmark, way, layers):
    rows, losses, cost_of, cardinalities = problem(layers, 60)
    acquisition = Acquisition(Surrogate(rows, losses, cardinalities), losses, cost_of)
    here = rows[acquisition.rows[:1]]
    peer = botorchs(acquisition, losses)
    benchmark.extra_info["dimension"] = len(cardinalities)
    benchmark.extra_info["neighbours"] = len(moves_from(here, cardinalities).start)
    benchmark.extra_info["front"] = len(acquisition.front)
    if way == "kernel factors":
        slopes = timed(benchmark, "cpu", acquisition.gradient, here, rounds=100)
    else:
        slopes = timed(benchmark, "cpu", peer, here, rounds=10)
    assert slopes.shape == here.shape
    assert slopes.abs().max() > 0


@pytest.mark.benchmark(group="a fit, 60 scored configurations of 36 layers")
@pytest.mark.parametrize("way", ["over logarithms", "botorch"])
def test_fit(benchmark, way):
    """Both with the gradient written down, on one thread as in a proposal; the losses are noisy, as
    scores are, and length scales are shared by field and by kind of layer, of six."""
    rows, losses, _, cardinalities = problem(36, 60)
    losses += 0.1 * losses.std() * torch.randn(len(losses), dtype=torch.float64)
    groups = torch.arange(len(cardinalities)) % (6 * len(NORMAL_FLOAT.cardinalities))

    def botorchs_fit():
        model = model_of(rows, losses, cardinalities, groups)
        likelihood = likelihood_of(model)
        fit_gpytorch_mll_scipy(likelihood, closure=map_closure(likelihood))
        return model

    def ours():
        return Surrogate(rows, losses, cardinalities, groups).model

    fit = one_thread()(ours if way == "over logarithms" else botorchs_fit)
    model = timed(benchmark, "cpu", fit, rounds=10)
    benchmark.extra_info["loss"] = loss_of(model)


@pytest.mark.benchmark(group="a whole proposal, to convergence")
@pytest.mark.parametrize(
    ("layers", "scored"),
    [(36, 60), (144, 60), (252, 60), (36, 120), (36, 250), (36, 500)],
)
def test_proposal(benchmark, layers, scored):
    """Five walks from the front, the fit of the surrogate included."""
    rows, losses, cost_of, cardinalities = problem(layers, scored)
    rounds = 3 if scored * layers < 60 * 144 else 1
    found = timed(benchmark, "cpu", propose, rows, losses, cost_of, cardinalities, 5, rounds=rounds)
    front = Acquisition(Surrogate(rows, losses, cardinalities), losses, cost_of).front
    benchmark.extra_info["dimension"] = len(cardinalities)
    benchmark.extra_info["scored"] = scored
    benchmark.extra_info["front"] = len(front)
    benchmark.extra_info["restarts"] = len(found.restarts)
    benchmark.extra_info["steps"] = [len(steps) for steps in found.trace]
    assert len(found.configurations) == len(found.restarts)
