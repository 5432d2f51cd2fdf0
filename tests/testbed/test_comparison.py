from dataclasses import replace

import pytest

from coalora_lib.search import SearchPlan
from coalora_lib.testbed.comparison import (
    ALLOCATION,
    START,
    between,
    compare_on_landscape,
    search_landscape,
)


def test_strategies_never_lose_volume_and_stay_below_the_front():
    plan = SearchPlan(rounds=1, restarts=5, max_steps=5, proposals=10)
    run = search_landscape(4, 0, plan, ["walk", "random"])
    for strategy in ("walk", "random"):
        closed = run.closed(strategy)
        assert len(closed) == 2
        assert 0 <= closed[0] <= closed[1] <= 1
    assert run.closed("walk")[-1] > run.closed("random")[-1]


def test_the_allocation_at_further_budgets_is_scored_too():
    budgets = between(7)
    assert len(set(budgets)) == 7
    assert START[0] < min(budgets) < max(budgets) < START[-1]
    plan = SearchPlan(rounds=1, restarts=5, max_steps=5, proposals=20)
    closed = search_landscape(4, 0, plan, [ALLOCATION]).closed(ALLOCATION)
    assert len(closed) == 4
    assert 0 <= closed[0] <= closed[-1] <= 1


def test_a_landscape_record_is_taken_up_where_it_stands(tmp_path):
    path = tmp_path / "record.json"
    plan = SearchPlan(rounds=1, restarts=2, max_steps=3, proposals=5)
    first = compare_on_landscape(4, [1], plan, ["random"], path)
    both = compare_on_landscape(4, [1, 2], plan, ["random"], path)
    assert [run.seed for run in both.runs] == [1, 2]
    assert both.runs[0] == first.runs[0]
    other = replace(plan, proposals=10)
    for given, strategies in ((other, ["random"]), (plan, ["walk"])):
        with pytest.raises(ValueError, match="another plan, versions or strategies"):
            compare_on_landscape(4, [1], given, strategies, path)
