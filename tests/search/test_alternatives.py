import pytest
import torch

from coalora_lib.search import STRATEGIES, Acquisition, ScoredSet, Surrogate, moves_from, propose
from coalora_lib.search.alternatives import BotorchAcquisition, new_rows
from coalora_lib.spaces import NORMAL_FLOAT, mean_bits_cost
from tests.search.toy import IncrementalLayerTable, LayerTable

CARDINALITIES = torch.tensor(NORMAL_FLOAT.cardinalities * 2)
BITS = mean_bits_cost("nf", [100, 300])
#: botorch's posterior against ours, relative to the area of all.
AS_BOTORCH = 1e-8


def scored(count=12, seed=0):
    generator = torch.Generator().manual_seed(50 + seed)  # else "random" draws the same rows
    columns = [torch.randint(int(n), (count,), generator=generator) for n in CARDINALITIES]
    rows = torch.stack(columns, dim=1)
    weights = torch.rand(len(CARDINALITIES), generator=generator, dtype=torch.float64)
    return rows, torch.exp(-0.4 * rows.double()) @ weights


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", STRATEGIES)
def test_proposals_are_new_inside_and_no_more_than_asked(name, count):
    rows, losses = scored()
    before = rows.clone()
    found = STRATEGIES[name](ScoredSet(rows, losses, BITS, CARDINALITIES.tolist()), count)
    assert torch.equal(rows, before)
    assert found.dtype == torch.int64
    assert 0 < len(found) <= count
    assert ((found >= 0) & (found < CARDINALITIES)).all()
    everything = [tuple(row) for row in torch.cat([rows, found]).tolist()]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_proposes_the_same(name):
    rows, losses = scored()
    torch.manual_seed(5)
    first = STRATEGIES[name](ScoredSet(rows, losses, BITS, CARDINALITIES.tolist()), 3, seed=2)
    torch.manual_seed(6)
    again = STRATEGIES[name](ScoredSet(rows, losses, BITS, CARDINALITIES.tolist()), 3, seed=2)
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["random", "nsga2"])
def test_another_seed_proposes_others(name):
    rows, losses = scored()
    first, other = (
        STRATEGIES[name](ScoredSet(rows, losses, BITS, CARDINALITIES.tolist()), 3, seed=seed)
        for seed in (2, 3)
    )
    assert not torch.equal(first, other)


def test_the_walks_strategy_is_propose():
    rows, losses = scored()
    found = STRATEGIES["walk"](ScoredSet(rows, losses, BITS, CARDINALITIES.tolist()), 3, 2, 1)
    expected = propose(rows, losses, BITS, CARDINALITIES, 3, 2, 1).configurations
    assert torch.equal(found, expected)


def test_random_proposals_are_uniform():
    rows, losses = scored()
    found = STRATEGIES["random"](ScoredSet(rows, losses, BITS, CARDINALITIES.tolist()), 2000)
    assert len(found) == 2000
    for column, count in zip(found.T, CARDINALITIES.tolist(), strict=True):
        share = column.bincount(minlength=count) / len(found)
        assert (share - 1 / count).abs().max() < 0.05


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_coordinate_with_one_value_stays(name):
    rows, losses = scored()
    rows = torch.cat([rows, torch.zeros_like(rows[:, :1])], dim=1)

    def bits(rows):
        return BITS(rows[:, :-1])

    found = STRATEGIES[name](ScoredSet(rows, losses, bits, [*CARDINALITIES.tolist(), 1]), 4)
    assert len(found) > 0
    assert (found[:, -1] == 0).all()


def test_botorch_sees_our_acquisition():
    rows, losses = scored()
    ours = Acquisition(Surrogate(rows, losses, CARDINALITIES), losses, BITS)
    asked = STRATEGIES["random"](ScoredSet(rows, losses, BITS, CARDINALITIES.tolist()), 50)
    with torch.no_grad():
        theirs = BotorchAcquisition(ours)(ours.surrogate.scale(asked)[:, None])
    assert theirs.max() > 0
    torch.testing.assert_close(theirs, ours(asked), atol=AS_BOTORCH * ours.area, rtol=AS_BOTORCH)


@pytest.mark.parametrize("seed", range(3))
def test_local_search_ends_where_no_step_is_better(seed):
    """Of the neighbours that were neither scored nor found before."""
    rows, losses = scored(seed=seed)
    found = STRATEGIES["local search"](
        ScoredSet(rows, losses, BITS, CARDINALITIES.tolist()), 4, seed=seed
    )
    acquisition = Acquisition(Surrogate(rows, losses, CARDINALITIES), losses, BITS)
    taken = set(map(tuple, rows.tolist()))
    for row in found:
        around = moves_from(row[None], CARDINALITIES).applied(row[None])
        new = torch.tensor([tuple(other) not in taken for other in around.tolist()])
        value = acquisition(row[None]).item()
        assert value >= acquisition(around[new]).max() - AS_BOTORCH * acquisition.area
        taken.add(tuple(row.tolist()))


def test_local_search_does_not_end_on_what_is_scored():
    """The walks find room on this problem, so that every start has a new end."""
    for seed in range(4):
        rows, losses = scored(seed=seed)
        acquisition = Acquisition(Surrogate(rows, losses, CARDINALITIES), losses, BITS)
        found = STRATEGIES["local search"](ScoredSet(rows, losses, BITS, CARDINALITIES.tolist()), 3)
        assert len(found) == min(3, len(acquisition.rows))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("kind", ["equal losses", "two scored", "duplicates"])
def test_degenerate_sets_are_proposed_from(name, kind):
    rows, losses = scored()
    if kind == "equal losses":
        losses = torch.full_like(losses, 0.5)
    if kind == "two scored":
        rows, losses = rows[:2], losses[:2]
    if kind == "duplicates":
        rows, losses = rows.repeat(2, 1), losses.repeat(2)
    found = STRATEGIES[name](ScoredSet(rows, losses, BITS, CARDINALITIES.tolist()), 3)
    assert 0 < len(found) <= 3
    assert not set(map(tuple, rows.tolist())) & set(map(tuple, found.tolist()))


def test_new_rows_are_the_first_distinct_ones():
    seen = torch.tensor([[0, 1], [2, 2]])
    rows = torch.tensor([[3, 3], [0, 1], [3, 3], [1, 0], [4, 4]])
    assert new_rows(seen, rows, 2).tolist() == [[3, 3], [1, 0]]
    assert new_rows(seen, seen, 2).shape == (0, 2)


def restricted(kind, layers=4, count=12, seed=0):
    """A scored set of a space in which layers may not take some of their choices."""
    cost_of = kind(layers)
    rows = cost_of.allowed(count, seed)
    losses = torch.exp(-0.5 * rows[:, ::2].double()).mean(1) + 0.05 * rows[:, 1]
    return ScoredSet(rows, losses, cost_of, cost_of.cardinalities)


@pytest.mark.parametrize("kind", [LayerTable, IncrementalLayerTable])
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_not_allowed_is_never_proposed(name, kind, seed):
    known = restricted(kind, seed=seed)
    found = STRATEGIES[name](known, 6, seed=seed)
    assert 0 < len(found) <= 6
    assert known.cost_of(found).isfinite().all()
    assert not set(map(tuple, known.configurations.tolist())) & set(map(tuple, found.tolist()))


@pytest.mark.parametrize("name", ["random", "nsga2"])
def test_proposals_are_found_where_hardly_any_draw_is_allowed(name):
    """Of uniform draws of 36 layers, about one in 1,600 is allowed."""
    known = restricted(LayerTable, layers=36)
    draws = torch.stack([torch.randint(n, (10_000,)) for n in known.cardinalities], 1)
    assert known.cost_of(draws).isfinite().double().mean() < 1 / 500
    found = STRATEGIES[name](known, 5)
    assert len(found) == 5
    assert known.cost_of(found).isfinite().all()


def test_random_proposals_are_uniform_over_what_is_allowed():
    """The chains end at their uniform stationary distribution, but for what four sweeps leave."""
    known = restricted(LayerTable, layers=16)
    found = STRATEGIES["random"](known, 2000)
    assert len(found) == 2000
    for layer in range(16):
        choices = 3 * found[:, 2 * layer] + found[:, 2 * layer + 1]
        share = choices.bincount(minlength=12) / len(found)
        allowed = known.cost_of.table[layer].flatten().isfinite()
        assert (share[~allowed] == 0).all()
        assert (share[allowed] - 1 / allowed.sum()).abs().max() < 0.05


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_scored_set_with_what_is_not_allowed_is_refused(name):
    known = restricted(LayerTable, layers=16)
    known.configurations[:, 2] = 3
    with pytest.raises(ValueError, match="the cost of configuration 0 is inf; it must be finite"):
        STRATEGIES[name](known, 3)
