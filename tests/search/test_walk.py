import pytest
import torch

from coalora_lib.search import Surrogate, finite_differences, propose
from coalora_lib.search.walk import neighbours, walk

CHOICES = torch.tensor([4, 4, 3, 3, 3, 1])


def quadratic(rows):
    """One maximum, at (2, 1, 2, 0, 1, 0)."""
    return -((rows - torch.tensor([2, 1, 2, 0, 1, 0])) ** 2).sum(1).double()


def test_neighbours_stay_inside_and_differ_in_one_coordinate():
    here = torch.tensor([0, 3, 1, 2, 0, 0])
    rows, coordinate, change = neighbours(here, CHOICES)
    assert ((rows >= 0) & (rows < CHOICES)).all()
    assert ((rows != here).sum(1) == 1).all()
    assert torch.equal((rows - here).sum(1), change)
    assert coordinate.tolist() == [0, 1, 2, 2, 3, 4]


def test_differences_are_central_inside_and_one_sided_at_bounds():
    here = torch.tensor([1, 3, 0, 2, 1, 0])
    slope = finite_differences(quadratic, here, CHOICES)
    for i in range(6):
        up, down = here.clone(), here.clone()
        up[i] += 1
        down[i] -= 1
        values = {side: quadratic(row[None])[0] for side, row in (("up", up), ("down", down))}
        value = quadratic(here[None])[0]
        if CHOICES[i] == 1:
            expected = 0.0
        elif here[i] == 0:
            expected = values["up"] - value
        elif here[i] == CHOICES[i] - 1:
            expected = value - values["down"]
        else:
            expected = (values["up"] - values["down"]) / 2
        assert slope[i] == expected


@pytest.mark.parametrize("start", [[0, 0, 0, 2, 2, 0], [3, 3, 0, 0, 0, 0], [2, 1, 2, 0, 1, 0]])
def test_the_walk_reaches_the_maximum_and_rises_on_the_way(start):
    end, steps = walk(quadratic, torch.tensor(start), CHOICES, 50)
    assert end.tolist() == [2, 1, 2, 0, 1, 0]
    values = [step.acquisition for step in steps]
    assert values == sorted(values)
    assert len(steps) == (torch.tensor(start) - end).abs().sum()


def test_the_walk_stops_after_its_steps():
    _, steps = walk(quadratic, torch.tensor([0, 3, 0, 2, 2, 0]), CHOICES, 2)
    assert len(steps) == 2


def scored(count=24):
    """Configurations whose loss falls and whose bits rise with the sum of the first coordinates."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.randint(int(n), (count,), generator=generator) for n in CHOICES], 1)
    rows = torch.unique(rows, dim=0)
    return rows, true_loss(rows)


def true_loss(rows):
    return torch.exp(-0.5 * rows[:, 0].double()) + 0.05 * rows[:, 2]


def bits_of(rows):
    return 2 + rows[:, 0] + 0.3 * rows[:, 1].double()


def test_proposals_are_new_inside_and_moved():
    rows, losses = scored()
    found = propose(rows, losses, bits_of, CHOICES, starts=4)
    assert len(found.configurations) > 0
    assert ((found.configurations >= 0) & (found.configurations < CHOICES)).all()
    everything = [tuple(row) for row in torch.cat([rows, found.configurations]).tolist()]
    assert len(set(everything)) == len(everything)
    assert (found.acquisition > 0).all()
    assert any(found.trace)


def test_the_same_seed_proposes_the_same():
    rows, losses = scored()
    first, again = (propose(rows, losses, bits_of, CHOICES, seed=3) for _ in range(2))
    assert torch.equal(first.configurations, again.configurations)


def test_the_surrogate_learns_and_is_unsure_elsewhere():
    rows, losses = scored()
    surrogate = Surrogate(rows, losses, CHOICES)
    mean, std = surrogate.predict(rows)
    assert (mean - losses).abs().mean() < 0.2 * losses.std()
    grid = torch.cartesian_prod(*(torch.arange(int(n)) for n in CHOICES))
    predicted, _ = surrogate.predict(grid)
    correlation = torch.corrcoef(torch.stack([predicted, true_loss(grid)]))[0, 1]
    assert correlation > 0.8
    assert surrogate.predict(grid)[1].max() > std.max()


@pytest.mark.parametrize(
    ("rows", "losses", "message"),
    [
        (torch.zeros(1, 6), torch.zeros(1), "two scored configurations, got 1"),
        (torch.zeros(2, 6), torch.tensor([0.0, torch.nan]), "loss of configuration 1 is nan"),
        (torch.zeros(2, 5), torch.zeros(2), r"must be \(2, 6\)"),
    ],
    ids=["one", "nan", "width"],
)
def test_bad_input_is_refused(rows, losses, message):
    with pytest.raises(ValueError, match=message):
        propose(rows.long(), losses, bits_of, CHOICES)


def test_starts_must_be_positive():
    rows, losses = scored()
    with pytest.raises(ValueError, match="starts=0"):
        propose(rows, losses, bits_of, CHOICES, starts=0)
