from itertools import product

import pytest
import torch

from coalora_lib.allocation import allocate, error_table, undominated
from coalora_lib.configuration import LayerConfig, bits_table
from coalora_lib.quantization import quantize


def random_errors(layers):
    """Errors that fall with bits, as real ones do, and cross often."""
    noise = torch.rand(layers, 432, dtype=torch.float64)
    return (4.0 ** -bits_table()) * (0.5 + noise) * (1 + torch.arange(layers)[:, None])


def test_error_table_is_the_quantizers_error():
    weights = {"a": torch.randn(40, 30), "b": torch.randn(130, 140)}
    table = error_table(weights)
    for row, weight in enumerate(weights.values()):
        for config in LayerConfig.space()[::31]:
            error = (quantize(weight, config).dequantize() - weight).double().square().sum()
            assert table[row, config.choice] == pytest.approx(error.item(), rel=1e-4)


def test_sampled_pieces_estimate_the_table():
    weights = {"a": torch.randn(512, 512)}
    whole, sampled = error_table(weights), error_table(weights, pieces=4)
    assert ((sampled - whole).abs() / whole).mean() < 0.05
    assert torch.equal(error_table(weights, pieces=99), whole)


def test_error_table_names_the_layer_at_fault():
    with pytest.raises(ValueError, match=r"layer bad: .*NaN"):
        error_table({"good": torch.ones(3), "bad": torch.tensor([torch.nan])})


def test_undominated_choices_are_those_nothing_beats():
    errors, bits = random_errors(1)[0], bits_table()
    kept = set(undominated(errors, bits).tolist())
    for i in range(len(errors)):
        beaten = (
            (errors <= errors[i]) & (bits <= bits[i]) & ((errors < errors[i]) | (bits < bits[i]))
        )
        assert (i in kept) == (not beaten.any())


@pytest.mark.parametrize("budget", [2.2, 2.8, 4.1, 6.0, 20.0])
def test_allocation_is_the_optimum_by_enumeration(budget):
    errors, bits, sizes = random_errors(2), bits_table(), [64, 192]
    best = min(
        errors[0, i] + errors[1, j]
        for i, j in product(
            undominated(errors[0], bits).tolist(), undominated(errors[1], bits).tolist()
        )
        if (sizes[0] * bits[i] + sizes[1] * bits[j]) / sum(sizes) <= budget + 1e-12
    )
    found = allocate(errors, sizes, budget)
    assert found.error == pytest.approx(best.item(), rel=1e-9)
    assert found.bits <= budget + 1e-12
    assert found.gap == 0


def test_a_budget_below_the_smallest_is_refused_with_that_number():
    with pytest.raises(ValueError, match=r"2\.0 bits is not feasible: the smallest is 2\.032227"):
        allocate(random_errors(2), [1, 1], 2.0)
    with pytest.raises(ValueError, match="not feasible"):
        allocate(random_errors(2), [1, 1], float("nan"))


def test_the_smallest_budget_is_met_exactly():
    found = allocate(random_errors(3), [5, 7, 11], float(bits_table().min()))
    assert found.bits == bits_table().min()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"errors must be \(3, 432\)"):
        allocate(random_errors(2), [1, 1, 1], 4.0)


def test_the_solver_prints_nothing(capfd):
    for budget in (2.3, 2.9, 5.1):
        allocate(random_errors(12), [100] * 12, budget)
    assert capfd.readouterr().out == ""
