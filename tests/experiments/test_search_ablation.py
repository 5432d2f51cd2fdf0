from dataclasses import replace

import pytest
import torch

from coalora_lib.configuration import LayerConfig, to_indices
from coalora_lib.experiments.landscape import Landscape
from coalora_lib.experiments.search_ablation import (
    ALLOCATION,
    START,
    between,
    compare_on_landscape,
    search_landscape,
)
from coalora_lib.training import SearchPlan


def test_the_landscapes_front_is_the_best_of_all_configurations():
    landscape = Landscape(2, seed=3)
    single = to_indices(LayerConfig.space())
    first, second = torch.cartesian_prod(torch.arange(432), torch.arange(432)).T
    everything = torch.cat([single[first], single[second]], dim=1)
    losses, bits = landscape(everything), landscape.bits_of(everything)
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


def test_strategies_never_lose_volume_and_stay_below_the_front():
    plan = SearchPlan(rounds=1, starts=5, max_steps=5, proposals=10)
    run = search_landscape(4, 0, plan, ["walk", "random"])
    for strategy in ("walk", "random"):
        closed = run.closed(strategy)
        assert len(closed) == 2
        assert 0 <= closed[0] <= closed[1] <= 1
    assert run.closed("walk")[-1] > run.closed("random")[-1]


def test_odd_layers_are_refused():
    with pytest.raises(ValueError, match="layers=3"):
        Landscape(3, 0)


def test_the_allocation_at_further_budgets_is_scored_too():
    budgets = between(7)
    assert len(set(budgets)) == 7
    assert START[0] < min(budgets) < max(budgets) < START[-1]
    plan = SearchPlan(rounds=1, starts=5, max_steps=5, proposals=20)
    closed = search_landscape(4, 0, plan, [ALLOCATION]).closed(ALLOCATION)
    assert len(closed) == 4
    assert 0 <= closed[0] <= closed[-1] <= 1


def test_a_landscape_record_is_taken_up_where_it_stands(tmp_path):
    path = tmp_path / "record.json"
    plan = SearchPlan(rounds=1, starts=2, max_steps=3, proposals=5)
    first = compare_on_landscape(4, [1], plan, ["random"], path)
    both = compare_on_landscape(4, [1, 2], plan, ["random"], path)
    assert [run.seed for run in both.runs] == [1, 2]
    assert both.runs[0] == first.runs[0]
    other = replace(plan, proposals=10)
    for given, strategies in ((other, ["random"]), (plan, ["walk"])):
        with pytest.raises(ValueError, match="another plan, versions or strategies"):
            compare_on_landscape(4, [1], given, strategies, path)
