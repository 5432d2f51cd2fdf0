import pytest
import torch

from coalora_lib.spaces import NORMAL_FLOAT
from coalora_lib.testbed.landscape import Landscape


def test_the_landscapes_front_is_the_best_of_all_configurations():
    landscape = Landscape(2, seed=3)
    single = NORMAL_FLOAT.to_indices(NORMAL_FLOAT.choices)
    first, second = torch.cartesian_prod(torch.arange(432), torch.arange(432)).T
    everything = torch.cat([single[first], single[second]], dim=1)
    losses, bits = landscape(everything), landscape.cost_of(everything)
    budgets = [2.2, 3.0, 4.4, 7.0]
    for budget, (loss, used) in zip(budgets, landscape.front(budgets).tolist(), strict=True):
        assert used <= budget + 1e-9
        assert loss == pytest.approx(losses[bits <= budget + 1e-9].min().item(), abs=1e-12)


def test_pairs_interact_and_the_loss_stays_below_chance():
    landscape = Landscape(4, seed=0)
    coarse, fine = torch.zeros(1, 20).long(), torch.tensor([[3, 3, 2, 0, 0] * 4])
    one, other, both = fine.clone(), fine.clone(), fine.clone()
    one[0, :5], other[0, 5:10], both[0, :10] = coarse[0, :5], coarse[0, :5], coarse[0, :10]
    a, b, ab, none = (landscape(rows).item() for rows in (one, other, both, fine))
    assert abs((ab - none) - (a - none) - (b - none)) > 1e-4
    assert landscape(coarse).item() < 0.6932


def test_odd_layers_are_refused():
    with pytest.raises(ValueError, match="layers=3"):
        Landscape(3, 0)
