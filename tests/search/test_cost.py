import pytest
import torch

from coalora_lib.search.cost import all_finite, finite_costs, is_allowed, swept
from tests.search.toy import LayerTable, drawn


def test_what_costs_infinity_is_not_allowed():
    costs = torch.tensor([1.0, torch.inf, -3.0])
    assert is_allowed(costs).tolist() == [True, False, True]
    assert is_allowed(costs[:0]).tolist() == []
    assert not all_finite(costs)
    assert all_finite(costs[::2])
    assert not all_finite(torch.tensor([torch.inf, -torch.inf]))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf], ids=["nan", "minus infinity"])
def test_a_cost_that_is_no_cost_is_refused(value):
    with pytest.raises(ValueError, match=r"a cost is (nan|-inf); allowed: finite values and \+inf"):
        is_allowed(torch.tensor([torch.inf, value]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "infinity"])
def test_scored_configurations_must_have_finite_costs(value):
    costs = torch.tensor([2.0, value])
    with pytest.raises(ValueError, match=f"the cost of configuration 1 is {value}; it must be"):
        finite_costs(lambda rows: costs, torch.zeros(2, 3))
    found = finite_costs(lambda rows: torch.tensor([2, 3]), torch.zeros(2, 3))
    assert found.dtype == torch.float64
    assert found.tolist() == [2, 3]


def test_a_sweep_takes_over_what_is_allowed_and_stays_inside():
    cost_of = LayerTable(6)
    inside, rows = cost_of.allowed(200), drawn(cost_of.cardinalities, 200)
    before = inside.clone()
    assert not is_allowed(cost_of(rows)).all()
    found = swept(cost_of, inside, rows)
    assert torch.equal(inside, before)
    assert is_allowed(cost_of(found)).all()
    assert ((found == rows) | (found == inside)).all()
    assert not torch.equal(found, inside)
    # Where a layer's choice is refused, the sweep kept a coordinate of that layer.
    kept = (found != rows).unflatten(1, (6, 2)).any(2)
    assert (kept | (found == rows).unflatten(1, (6, 2)).all(2)).all()
    again = swept(cost_of, inside, cost_of.allowed(200, seed=1))
    assert is_allowed(cost_of(again)).all()


def test_a_sweep_towards_anything_is_the_row_where_all_is_allowed():
    rows = drawn((4, 3, 2), 20)
    assert torch.equal(swept(lambda rows: rows.sum(1).double(), rows.flip(0), rows), rows)
