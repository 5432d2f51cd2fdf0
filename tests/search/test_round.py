import pytest
import torch

from coalora_lib.search import (
    STRATEGIES,
    ScoredSet,
    SearchPlan,
    extend,
    search_round,
    segment_pareto_filter,
)
from tests.search.toy import IncrementalLayerTable

CARDINALITIES = (4, 4, 3, 3, 3)


def loss_of(rows):
    return torch.exp(-0.5 * rows[:, 0].double()) + 0.05 * rows[:, 2]


def cost_of(rows):
    return 2 + rows[:, 0] + 0.3 * rows[:, 1].double()


def scored(count=8):
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(n, (count,), generator=generator) for n in CARDINALITIES]
    rows = torch.stack(columns, dim=1)
    return rows, loss_of(rows)


def extended(strategy, proposals=7, restarts=3, seed=1):
    """The set and its losses after, and the rows of each call to score."""
    plan = SearchPlan(rounds=2, restarts=restarts, proposals=proposals, strategy=strategy)
    asked = []

    def score(rows):
        asked.append(rows)
        return loss_of(rows)

    found = extend(ScoredSet(*scored(), cost_of, CARDINALITIES), score, plan, seed)
    return found.configurations, found.losses, asked


@pytest.mark.parametrize("strategy", ["walk", "random"])
def test_the_whole_budget_is_scored_and_no_more(strategy):
    rows, _ = scored()
    everything, all_losses, asked = extended(strategy)
    assert len(everything) == len(all_losses) == len(rows) + 7
    assert torch.equal(everything[: len(rows)], rows)
    assert torch.equal(all_losses, loss_of(everything))
    assert torch.equal(torch.cat(asked), everything[len(rows) :])
    assert max(len(part) for part in asked) <= 3
    new = {tuple(row) for row in torch.cat(asked).tolist()} - {tuple(row) for row in rows.tolist()}
    assert len(new) == 7


@pytest.mark.parametrize("strategy", ["walk", "random"])
def test_fewer_are_proposed_at_a_time_where_the_budget_is_small(strategy):
    _, _, asked = extended(strategy, proposals=1, restarts=5)
    assert [len(part) for part in asked] == [1]


def test_the_surrogate_is_fitted_anew_with_what_was_scored():
    """The second call of the strategy sees the first one's scores."""
    everything, losses, asked = extended("walk", proposals=4, restarts=2)
    first = len(everything) - 4 + len(asked[0])
    known = ScoredSet(everything[:first], losses[:first], cost_of, CARDINALITIES)
    again = STRATEGIES["walk"](known, len(asked[1]), None, 1 + first)
    assert torch.equal(again, asked[1])


@pytest.mark.parametrize("strategy", ["walk", "random"])
def test_the_same_seed_extends_the_same(strategy):
    first, again = (extended(strategy)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert strategy == "walk" or not torch.equal(first, extended(strategy, seed=2)[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_ends_where_there_is_no_more_to_propose(strategy):
    """One coordinate with two values, both of them scored."""
    plan = SearchPlan(rounds=2, restarts=2, proposals=5, strategy=strategy)
    rows, losses = torch.tensor([[0], [1]]), torch.tensor([0.4, 0.1], dtype=torch.float64)

    def score(rows):
        raise AssertionError(f"asked to score {rows}")

    known = ScoredSet(rows, losses, lambda rows: 2 + rows[:, 0].double(), (2,))
    found = extend(known, score, plan, 0)
    assert torch.equal(found.configurations, rows)
    assert torch.equal(found.losses, losses)


def test_it_ends_once_all_of_a_small_space_is_scored():
    plan = SearchPlan(rounds=2, restarts=2, proposals=50, strategy="walk")
    rows = torch.tensor([[0, 0], [1, 2]])
    known = ScoredSet(rows, rows.sum(1).double(), lambda rows: 5.0 - rows.sum(1).double(), (2, 3))
    everything = extend(known, lambda rows: rows.sum(1).double(), plan, 0).configurations
    assert len(rows) < len(everything) <= 6
    assert len(torch.unique(everything, dim=0)) == len(everything)


@pytest.mark.parametrize("name", ["rounds", "restarts", "max_steps", "segments", "proposals"])
def test_a_plan_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        SearchPlan(**{"rounds": 2, "restarts": 2, name: 0})


@pytest.mark.parametrize("value", ["2", 2.5, [2]], ids=str)
def test_a_plans_number_that_is_none_is_named(value):
    with pytest.raises(TypeError, match=r"restarts=.* must be a whole number"):
        SearchPlan(2, value)
    with pytest.raises(TypeError, match="rounds=None must be a whole number"):
        SearchPlan(None, 2)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="strategy='greedy' is not known; allowed: walk, random"):
        SearchPlan(2, 2, strategy="greedy")


def test_groups_reach_the_strategy(monkeypatch):
    met = []

    def note(known, count, max_steps, seed):
        met.append(known.groups)
        return known.configurations[:0]

    monkeypatch.setitem(STRATEGIES, "walk", note)
    plan = SearchPlan(rounds=2, restarts=1, proposals=1)
    groups = torch.zeros(len(CARDINALITIES), dtype=torch.int64)
    extend(ScoredSet(*scored(), cost_of, CARDINALITIES, groups), loss_of, plan, 0)
    assert met == [groups]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_round_of_a_space_with_restrictions(strategy):
    """All that it scores is allowed, and so is what the filter keeps."""
    cost_of = IncrementalLayerTable(3)
    rows = cost_of.allowed(8)
    plan = SearchPlan(rounds=2, restarts=3, proposals=9, segments=5, strategy=strategy)

    def score(rows):
        assert cost_of(rows).isfinite().all()
        return torch.exp(-rows[:, ::2].double()).sum(1)

    found = search_round(
        ScoredSet(rows, score(rows), cost_of, cost_of.cardinalities), score, plan, 0
    )
    assert torch.equal(found.configurations[:8], rows)
    assert 0 < found.proposed <= 9
    assert len(found.configurations) == len(found.losses) == len(found.costs) == 8 + found.proposed
    assert torch.equal(found.losses, score(found.configurations))
    assert torch.equal(found.costs, cost_of(found.configurations))
    kept = segment_pareto_filter(torch.stack([found.losses, found.costs], 1), 5)
    assert torch.equal(found.kept, kept)


def test_a_round_without_a_filter_keeps_everything():
    plan = SearchPlan(rounds=2, restarts=2, proposals=3, segments=None, strategy="random")
    found = search_round(ScoredSet(*scored(), cost_of, CARDINALITIES), loss_of, plan, 0)
    assert found.kept.tolist() == list(range(len(found.losses)))


def test_a_set_with_what_is_not_allowed_is_refused_before_anything_is_scored():
    rows, losses = scored()
    plan = SearchPlan(rounds=2, restarts=2, proposals=3)

    def cost(rows):
        return torch.where(rows[:, 0] == rows[0, 0], torch.inf, 2.0)

    def score(rows):
        raise AssertionError(f"asked to score {rows}")

    with pytest.raises(ValueError, match="the cost of configuration 0 is inf"):
        search_round(ScoredSet(rows, losses, cost, CARDINALITIES), score, plan, 0)
