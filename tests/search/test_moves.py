import pytest
import torch

from coalora_lib.search import (
    Acquisition,
    Neighbourhood,
    Surrogate,
    finite_differences,
    moves_from,
)
from coalora_lib.search.moves import allowed_moves, costs_after
from coalora_lib.spaces import NORMAL_FLOAT, mean_bits_cost
from tests.search.toy import IncrementalLayerTable, LayerTable, drawn

CARDINALITIES = torch.tensor([4, 4, 3, 3, 3, 1, 2])
#: The kernel as a product of factors against the kernel of built rows.
AS_BUILT = 1e-10


def uneven(rows):
    """Any function in which no two moves are alike."""
    weights = torch.arange(1, rows.shape[1] + 1).double().sqrt()
    return torch.sin(rows.double() @ weights) + 0.1 * (rows * weights).square().sum(1)


def cost_of(rows):
    return 2 + rows.double() @ torch.linspace(0.1, 1, rows.shape[1], dtype=torch.float64)


def problem(cardinalities, scored=20, seed=0):
    rows = drawn(cardinalities, scored, seed)
    return Surrogate(rows, uneven(rows), cardinalities), uneven(rows)


#: Thirty coordinates as the layers have them, and few of which one has a single value.
SPACES = [
    pytest.param(torch.tensor(NORMAL_FLOAT.cardinalities * 6), id="30 coordinates"),
    pytest.param(CARDINALITIES, id="one single value"),
]


@pytest.mark.parametrize("cardinalities", SPACES)
def test_moves_are_every_neighbour_inside_once(cardinalities):
    here = torch.cat(
        [drawn(cardinalities, 3), torch.zeros_like(cardinalities)[None], cardinalities[None] - 1]
    )
    moves = moves_from(here, cardinalities)
    rows = moves.applied(here)
    assert ((rows >= 0) & (rows < cardinalities)).all()
    listed = list(zip(moves.start.tolist(), map(tuple, rows.tolist()), strict=True))
    expected = set()
    for start, row in enumerate(here.tolist()):
        for i, count in enumerate(cardinalities.tolist()):
            for value in (row[i] - 1, row[i] + 1):
                if 0 <= value < count:
                    expected.add((start, (*row[:i], value, *row[i + 1 :])))
    assert len(listed) == len(expected)
    assert set(listed) == expected
    assert torch.equal((rows - here[moves.start]).sum(1), moves.change)
    assert set(moves.change.tolist()) == {-1, 1}


def test_applied_leaves_the_configurations_alone():
    here = drawn(CARDINALITIES, 2)
    before = here.clone()
    moves_from(here, CARDINALITIES).applied(here)
    assert torch.equal(here, before)


def looped_differences(function, here, cardinalities):
    """The definition, one coordinate of one configuration at a time."""
    slopes = torch.zeros(here.shape, dtype=torch.float64)
    for s, row in enumerate(here):
        for i, count in enumerate(cardinalities.tolist()):
            below, above = row.clone(), row.clone()
            below[i] = max(row[i].item() - 1, 0)
            above[i] = min(row[i].item() + 1, count - 1)
            apart = (above[i] - below[i]).item()
            if apart:
                low, high = function(torch.stack([below, above])).tolist()
                slopes[s, i] = (high - low) / apart
    return slopes


@pytest.mark.parametrize("cardinalities", SPACES)
def test_differences_are_central_inside_and_one_sided_at_bounds(cardinalities):
    here = torch.cat(
        [drawn(cardinalities, 3), torch.zeros_like(cardinalities)[None], cardinalities[None] - 1]
    )
    moves = moves_from(here, cardinalities)
    slopes = finite_differences(
        uneven(moves.applied(here)), uneven(here), moves, len(cardinalities)
    )
    torch.testing.assert_close(slopes, looped_differences(uneven, here, cardinalities))
    assert (slopes[:, cardinalities == 1] == 0).all()
    assert (slopes[:, cardinalities > 1] != 0).all()


@pytest.mark.parametrize("cardinalities", SPACES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_neighbourhood_predicts_as_the_surrogate_does(cardinalities, seed):
    surrogate, _ = problem(cardinalities, seed=seed)
    here = torch.cat([drawn(cardinalities, 3, 9), surrogate.configurations[:2]])
    moves = moves_from(here, cardinalities)
    mean, std = Neighbourhood(surrogate).predict(here, moves)
    built = torch.cat([moves.applied(here), here])
    expected_mean, expected_std = surrogate.predict(built)
    assert expected_mean.std() > 0
    torch.testing.assert_close(mean, expected_mean, atol=AS_BUILT, rtol=AS_BUILT)
    torch.testing.assert_close(std, expected_std, atol=AS_BUILT, rtol=AS_BUILT)


def test_a_neighbourhood_of_a_conditioned_surrogate():
    surrogate, _ = problem(CARDINALITIES)
    conditioned = surrogate.condition_on(drawn(CARDINALITIES, 2, 5))
    here = drawn(CARDINALITIES, 3, 9)
    moves = moves_from(here, CARDINALITIES)
    mean, std = Neighbourhood(conditioned).predict(here, moves)
    expected_mean, expected_std = conditioned.predict(torch.cat([moves.applied(here), here]))
    torch.testing.assert_close(mean, expected_mean, atol=AS_BUILT, rtol=AS_BUILT)
    torch.testing.assert_close(std, expected_std, atol=AS_BUILT, rtol=AS_BUILT)


@pytest.mark.parametrize("cardinalities", SPACES)
def test_the_gradient_of_the_acquisition_is_a_loops(cardinalities):
    surrogate, losses = problem(cardinalities)
    acquisition = Acquisition(surrogate, losses, cost_of)
    here = torch.cat(
        [acquisition.surrogate.configurations[acquisition.rows[:2]], drawn(cardinalities, 2)]
    )
    expected = looped_differences(acquisition, here, cardinalities)
    assert expected.abs().max() > 0
    torch.testing.assert_close(
        acquisition.gradient(here), expected, atol=AS_BUILT * acquisition.area, rtol=AS_BUILT
    )


@pytest.mark.parametrize("log", [False, True], ids=["plain", "log"])
def test_the_acquisition_around_is_that_of_built_rows(log):
    surrogate, losses = problem(CARDINALITIES)
    acquisition = Acquisition(surrogate, losses, cost_of)
    here = drawn(CARDINALITIES, 3, 9)
    moves, costs = allowed_moves(cost_of, here, CARDINALITIES)
    values, current = acquisition.around(here, moves, costs, log=log)
    torch.testing.assert_close(values, acquisition(moves.applied(here), log=log))
    torch.testing.assert_close(current, acquisition(here, log=log))


@pytest.mark.parametrize(
    "function",
    [mean_bits_cost("nf", [10, 200, 35, 7]), lambda rows: rows.float().mean(1)],
    ids=["mean bits", "plain function"],
)
def test_costs_after_moves_are_those_of_built_rows(function):
    cardinalities = torch.tensor(NORMAL_FLOAT.cardinalities * 4)
    here = drawn(cardinalities, 3)
    moves = moves_from(here, cardinalities)
    found = costs_after(function, here, moves, function(here).double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, function(moves.applied(here)).double())


@pytest.mark.parametrize("kind", [LayerTable, IncrementalLayerTable])
def test_allowed_moves_are_those_of_finite_cost(kind):
    cost_of = kind(6)
    here, cardinalities = cost_of.allowed(3), torch.tensor(cost_of.cardinalities)
    everything = moves_from(here, cardinalities)
    after = cost_of(everything.applied(here))
    moves, costs = allowed_moves(cost_of, here, cardinalities)
    assert 0 < len(moves.start) < len(after)
    for part, whole in zip(moves, everything, strict=True):
        assert torch.equal(part, whole[after.isfinite()])
    torch.testing.assert_close(costs, torch.cat([after[after.isfinite()], cost_of(here)]))


def test_a_neighbour_that_is_not_allowed_is_a_bound():
    """Its difference is the one-sided one, and nothing is NaN."""
    cost_of = IncrementalLayerTable(4)
    cardinalities = torch.tensor(cost_of.cardinalities)
    rows = torch.unique(cost_of.allowed(12), dim=0)
    acquisition = Acquisition(Surrogate(rows, uneven(rows), cardinalities), uneven(rows), cost_of)
    here = torch.cat([rows[acquisition.rows], cost_of.allowed(6, seed=9)])
    slopes = acquisition.gradient(here)
    assert slopes.isfinite().all()
    values, one_sided = acquisition(here), 0
    for row, value, found in zip(here, values, slopes, strict=True):
        for i, count in enumerate(cost_of.cardinalities):
            sides = []
            for change in (-1, 1):
                moved = row.clone()
                moved[i] += change
                if 0 <= moved[i] < count and cost_of(moved[None]).isfinite():
                    sides.append((acquisition(moved[None])[0] - value) * change)
            one_sided += 0 < row[i] < count - 1 and len(sides) == 1
            expected = sum(sides) / max(len(sides), 1)
            assert found[i].item() == pytest.approx(
                float(expected), abs=AS_BUILT * acquisition.area
            )
    assert one_sided > 0


def test_the_acquisition_of_what_is_not_allowed_is_zero():
    cost_of = LayerTable(4)
    cardinalities = torch.tensor(cost_of.cardinalities)
    rows = torch.unique(cost_of.allowed(12), dim=0)
    acquisition = Acquisition(Surrogate(rows, uneven(rows), cardinalities), uneven(rows), cost_of)
    asked = drawn(cost_of.cardinalities, 100)
    outside = cost_of(asked).isinf()
    assert outside.any()
    assert (acquisition(asked)[outside] == 0).all()
    assert (acquisition(asked, log=True)[outside] == -torch.inf).all()
    here = rows[:3]
    moves = moves_from(here, cardinalities)
    costs = torch.cat([cost_of(moves.applied(here)), cost_of(here)])
    outside = costs[:-3].isinf()
    assert outside.any()
    for log, nothing in ((False, 0), (True, -torch.inf)):
        values, current = acquisition.around(here, moves, costs, log=log)
        assert (values[outside] == nothing).all()
        assert not values.isnan().any()
        assert not current.isnan().any()
    with pytest.raises(ValueError, match="the cost of configuration 0 is inf"):
        acquisition.gradient(asked[cost_of(asked).isinf()][:1])
