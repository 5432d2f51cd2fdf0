"""How far an estimated error table is from the exact one, and what that costs an allocation."""

import pytest
import torch

from coalora_lib.adapter import adaptable_layers
from coalora_lib.allocation import allocate, error_table, undominated
from coalora_lib.allocation.errors import FEWEST
from coalora_lib.spaces import NORMAL_FLOAT as NF
from coalora_lib.tasks import load_classifier
from tests.spaces.toy import ROUNDING

BUDGETS = (2.25, 2.5, 3.0, 3.5, 4.0, 5.0)
DEVICES = (None, {"weight_bits": (3, 4)}, {"weight_bits": (2, 4, 8)}, {"weight_bits": (2, 8)})


def rows_far_apart():
    """Eight layers whose rows have scales of their own, some weights far out."""
    weights = {}
    for layer, shape in enumerate([(512, 512), (640, 384), (384, 640), (512, 512)] * 2):
        weight = torch.randn(shape) * torch.randn(shape[0], 1).exp() * (0.5 * torch.randn(1)).exp()
        weights[str(layer)] = torch.where(torch.rand(shape) < 1e-4, 15 * weight, weight)
    return weights


def minilm():
    """Every second block: an exact table of all of them takes a minute."""
    base = load_classifier()[0]
    layers = [name for name in adaptable_layers(base) if int(name.split(".layer.")[1][0]) % 2 == 0]
    return {name: base.get_submodule(name).weight.detach() for name in layers}


def excess_errors(exact, estimated, sizes):
    """How much error above the least an allocation from the estimate has, by what it must hold."""
    found = {}
    for budget in BUDGETS:
        for allowed in DEVICES:
            try:
                best = allocate(exact, sizes, budget, allowed=allowed)
            except ValueError:  # no 3 bits in a budget of 2.5
                continue
            taken = allocate(estimated, sizes, budget, allowed=allowed).configs
            error = sum(float(exact[i, NF.index(choice)]) for i, choice in enumerate(taken))
            found[budget, str(allowed)] = error / best.error - 1
    return found


@pytest.mark.parametrize(
    "weights",
    [rows_far_apart, pytest.param(minilm, marks=pytest.mark.slow)],
    ids=["rows far apart", "MiniLM"],
)
def test_allocation_from_an_estimate_costs_at_most_a_percent(weights):
    weights = weights()
    exact, estimated = error_table(weights), error_table(weights, sample=True)
    assert not torch.equal(exact, estimated)
    sizes = [weight.numel() for weight in weights.values()]
    excess = excess_errors(exact, estimated, sizes)
    assert max(excess.values()) <= 0.01, excess
    relative = [
        (estimated[layer, kept] - row[kept]) / row[kept]
        for layer, row in enumerate(exact)
        for kept in [undominated(row, NF.bits_table())]
    ]
    assert torch.cat(relative).square().mean().sqrt() < 0.06


def test_small_models_are_exact():
    weights = {"a": torch.randn(600, 600), "b": torch.randn(300, 100)}
    assert sum(weight.numel() for weight in weights.values()) < FEWEST
    assert torch.equal(error_table(weights, sample=True), error_table(weights))


def test_a_space_that_draws_no_samples_is_exact():
    weights = {"a": torch.randn(1200, 1200)}
    assert torch.equal(error_table(weights, ROUNDING, sample=True), error_table(weights, ROUNDING))


def test_no_layers():
    assert error_table({}, sample=True).shape == (0, 432)
