import itertools

import pytest
import torch

from coalora_lib.search import Acquisition, Surrogate, moves_from, pareto_front, propose, walk
from coalora_lib.search.moves import allowed_moves
from coalora_lib.search.walk import LEAST_GAIN
from coalora_lib.spaces import NORMAL_FLOAT, mean_bits_cost
from tests.search.toy import CARDINALITIES, IncrementalLayerTable, drawn, true_loss

#: Values of a neighbourhood against values of built rows, in the logarithm.
OF_A_LOGARITHM = 1e-6


def cost_of(rows):
    return 2 + rows[:, 0] + 0.3 * rows[:, 1].double()


def scored(count=24):
    """Distinct configurations; loss falls and cost rises with the first coordinate."""
    rows = torch.unique(drawn(CARDINALITIES, count), dim=0)
    return rows, true_loss(rows)


class Problem:
    """Random sensitivities of the layers, as many scored configurations, mean bits."""

    def __init__(self, seed, layers=3, count=20, kind=Acquisition):
        generator = torch.Generator().manual_seed(seed)
        self.cardinalities = torch.tensor(NORMAL_FLOAT.cardinalities * layers)
        self.rows = drawn(self.cardinalities, count, seed)
        weights = torch.rand(self.rows.shape[1], generator=generator, dtype=torch.float64)
        noise = torch.randn(count, generator=generator, dtype=torch.float64)
        self.losses = torch.exp(-0.3 * self.rows.double()) @ weights + 0.1 * noise
        sizes = torch.randint(100, 900, (layers,), generator=generator).tolist()
        surrogate = Surrogate(self.rows, self.losses, self.cardinalities)
        self.acquisition = kind(surrogate, self.losses, mean_bits_cost("nf", sizes))

    @property
    def restarts(self):
        """Front members and configurations that were never scored."""
        return torch.cat([self.rows[self.acquisition.rows[:3]], drawn(self.cardinalities, 3, 77)])


def reference_walk(acquisition, start, max_steps=None):
    """The walk as :func:`walk` describes it: rows are built, and looked up among the scored.

    Values are in a unit of their own at every step, as underflow would have the reference stop.
    """
    seen = set(map(tuple, acquisition.surrogate.configurations.tolist()))
    cardinalities = acquisition.surrogate.cardinalities.tolist()
    here, steps = tuple(start.tolist()), []
    while len(steps) != max_steps:
        places = [
            (i, change)
            for i in range(len(cardinalities))
            for change in (-1, 1)
            if 0 <= here[i] + change < cardinalities[i]
        ]
        rows = [(*here[:i], here[i] + change, *here[i + 1 :]) for i, change in places]
        finite = acquisition.cost_of(torch.tensor(rows)).isfinite().tolist()
        places = [place for place, allowed in zip(places, finite, strict=True) if allowed]
        rows = [row for row, allowed in zip(rows, finite, strict=True) if allowed]
        logs = acquisition(torch.tensor([*rows, here]), log=True)
        unit = logs.max().item()
        *after, current = (logs - unit).exp().tolist()
        values = dict(zip(places, after, strict=True))
        slopes = {}
        for i in range(len(cardinalities)):
            sides = [(values[i, c] - current) * c for c in (-1, 1) if (i, c) in values]
            slopes[i] = sum(sides) / max(len(sides), 1)
        new = [place for place, row in zip(places, rows, strict=True) if row not in seen]
        allowed = [p for p in new if here in seen or values[p] > current * (1 + LEAST_GAIN)]
        uphill = [(i, change) for i, change in allowed if slopes[i] * change > 0]
        if uphill:
            i, change = max(uphill, key=lambda place: abs(slopes[place[0]]))
        elif allowed:
            i, change = max(allowed, key=values.get)
        else:
            break
        here = (*here[:i], here[i] + change, *here[i + 1 :])
        steps.append((i, change, logs[places.index((i, change))].item()))
    return torch.tensor(here), steps


def moves_of(steps):
    return [(step.coordinate, step.change) for step in steps]


@pytest.mark.parametrize("seed", range(5))
def test_takes_the_steps_of_a_plain_loop(seed):
    problem = Problem(seed)
    ends, trace = walk(problem.acquisition, problem.restarts)
    assert sum(len(steps) for steps in trace) > len(trace)
    for start, end, steps in zip(problem.restarts, ends, trace, strict=True):
        expected_end, expected = reference_walk(problem.acquisition, start)
        assert moves_of(steps) == [(i, change) for i, change, _ in expected]
        assert torch.equal(end, expected_end)
        logs = [step.log_acquisition for step in steps]
        assert logs == pytest.approx([log for *_, log in expected], abs=OF_A_LOGARITHM)


@pytest.mark.parametrize("seed", range(8))
def test_a_crowded_space_is_walked_as_by_a_plain_loop(seed):
    """Most neighbours are scored: walks are stuck, go around, or start at a maximum."""
    cardinalities = torch.tensor([4, 3, 3])
    grid = torch.cartesian_prod(*(torch.arange(int(n)) for n in cardinalities))
    generator = torch.Generator().manual_seed(seed)
    rows = grid[torch.randperm(len(grid), generator=generator)[: 10 + 2 * seed]]
    losses = torch.rand(len(rows), generator=generator, dtype=torch.float64)

    def weighted(rows):
        return 2 + rows.double() @ torch.tensor([1.0, 0.37, 0.11], dtype=torch.float64)

    acquisition = Acquisition(Surrogate(rows, losses, cardinalities), losses, weighted)
    ends, trace = walk(acquisition, grid)
    for start, end, steps in zip(grid, ends, trace, strict=True):
        expected_end, expected = reference_walk(acquisition, start)
        assert moves_of(steps) == [(i, change) for i, change, _ in expected]
        assert torch.equal(end, expected_end)


@pytest.mark.parametrize("seed", [4, 12, 19])
def test_a_walk_leaves_a_scored_maximum_by_its_slopes(seed):
    """No neighbour is better there, and the best one is not where the slope is largest."""
    problem = Problem(seed, layers=1, count=150)
    acquisition = problem.acquisition
    moves, costs = allowed_moves(acquisition.cost_of, problem.rows, problem.cardinalities)
    values, current = acquisition.around(problem.rows, moves, costs, log=True)
    top = torch.full_like(current, -torch.inf).scatter_reduce(0, moves.start, values, "amax")
    starts = problem.rows[top <= current]
    assert len(starts) > 0
    _, trace = walk(acquisition, starts)
    for start, steps in zip(starts, trace, strict=True):
        _, expected = reference_walk(acquisition, start)
        assert moves_of(steps) == [(i, change) for i, change, _ in expected]


@pytest.mark.parametrize("seed", range(3))
def test_walks_together_go_as_each_alone(seed):
    problem = Problem(seed)
    ends, trace = walk(problem.acquisition, problem.restarts)
    for start, end, steps in zip(problem.restarts, ends, trace, strict=True):
        alone, (own,) = walk(problem.acquisition, start[None])
        assert torch.equal(alone[0], end)
        assert moves_of(own) == moves_of(steps)


def test_the_steps_lead_from_the_start_to_the_end_and_starts_are_left_alone():
    problem = Problem(0)
    starts = problem.restarts
    ends, trace = walk(problem.acquisition, starts)
    assert torch.equal(starts, problem.restarts)
    for start, end, steps in zip(starts, ends, trace, strict=True):
        here = start.clone()
        for coordinate, change in moves_of(steps):
            here[coordinate] += change
            assert not (problem.rows == here).all(1).any()
        assert torch.equal(here, end)


@pytest.mark.parametrize("seed", range(5))
def test_the_acquisition_rises_after_the_first_step(seed):
    problem = Problem(seed)
    ends, trace = walk(problem.acquisition, problem.restarts)
    for end, steps in zip(ends, trace, strict=True):
        logs = [step.log_acquisition for step in steps]
        assert all(later > earlier for earlier, later in itertools.pairwise(logs))
        if steps:
            reached = problem.acquisition(end[None], log=True).item()
            assert logs[-1] == pytest.approx(reached, abs=OF_A_LOGARITHM)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_walk_stops_after_its_steps(most):
    problem = Problem(1)
    ends, trace = walk(problem.acquisition, problem.restarts, most)
    _, further = walk(problem.acquisition, problem.restarts)
    for steps, all_steps in zip(trace, further, strict=True):
        assert moves_of(steps) == moves_of(all_steps)[:most]
    assert max(len(steps) for steps in further) > most
    assert ((ends - problem.restarts).abs().sum(1) <= most).all()


def shrunk(by):
    """The same acquisition times exp(-by), which a float may not hold."""

    class Shrunk(Acquisition):
        def _improvement(self, mean, std, cost, log):
            values = super()._improvement(mean, std, cost, True) - by
            return values if log else values.exp()

    return Shrunk


@pytest.mark.parametrize("by", [30, 730, 2000])
@pytest.mark.parametrize("seed", range(3))
def test_the_walk_goes_on_where_the_acquisition_underflows(seed, by):
    """2000 is below any float, 730 among the subnormal ones, 30 below what is called large."""
    plain, small = Problem(seed), Problem(seed, kind=shrunk(by))
    ends, trace = walk(plain.acquisition, plain.restarts)
    small_ends, small_trace = walk(small.acquisition, small.restarts)
    if by == 2000:
        assert (small.acquisition(small.restarts) == 0).all()
    assert torch.equal(small_ends, ends)
    for steps, small_steps in zip(trace, small_trace, strict=True):
        assert moves_of(small_steps) == moves_of(steps)
        logs = [step.log_acquisition - by for step in steps]
        small_logs = [step.log_acquisition for step in small_steps]
        assert small_logs == pytest.approx(logs, abs=OF_A_LOGARITHM)


def test_a_surrogate_that_is_sure_of_no_gain_is_walked_on():
    """Everything near the start is dominated by hundreds of standard deviations."""

    class Sure(Acquisition):
        def _improvement(self, mean, std, cost, log):
            return super()._improvement(mean + self.front[:, 0].max(), std * 1e-3, cost, log)

    problem = Problem(0, kind=Sure)
    starts = drawn(problem.cardinalities, 4, 77)
    assert (problem.acquisition(starts) == 0).all()
    before = problem.acquisition(starts, log=True)
    ends, trace = walk(problem.acquisition, starts)
    assert (problem.acquisition(ends, log=True) > before + 1).all()
    assert min(len(steps) for steps in trace) > 1


def test_proposals_are_new_inside_distinct_and_moved():
    rows, losses = scored()
    found = propose(rows, losses, cost_of, CARDINALITIES, restarts=4)
    assert len(found.configurations) > 1
    assert found.configurations.dtype == torch.int64
    assert ((found.configurations >= 0) & (found.configurations < CARDINALITIES)).all()
    everything = [tuple(row) for row in torch.cat([rows, found.configurations]).tolist()]
    assert len(set(everything)) == len(everything)
    assert (found.acquisition > 0).all()
    assert all(found.trace)
    alone = Acquisition(Surrogate(rows, losses, CARDINALITIES), losses, cost_of)
    torch.testing.assert_close(found.acquisition, alone(found.configurations))


def test_walks_begin_at_different_members_of_the_front():
    rows, losses = scored()
    front = rows[pareto_front(torch.stack([losses, cost_of(rows)], dim=1))]
    begin = propose(rows, losses, cost_of, CARDINALITIES, restarts=3).restarts
    assert len({tuple(row) for row in begin.tolist()}) == 3
    assert {tuple(row) for row in begin.tolist()} <= {tuple(row) for row in front.tolist()}


def test_more_restarts_than_members_of_the_front_are_all_of_it():
    rows, losses = scored()
    front = pareto_front(torch.stack([losses, cost_of(rows)], dim=1))
    found = propose(rows, losses, cost_of, CARDINALITIES, restarts=1000)
    assert len(found.restarts) == len(found.trace) == len(front)
    assert len(found.configurations) <= len(front)


def test_the_same_seed_proposes_the_same():
    rows, losses = scored()
    first, again = (propose(rows, losses, cost_of, CARDINALITIES, seed=3) for _ in range(2))
    assert torch.equal(first.configurations, again.configurations)
    assert first.trace == again.trace
    begins = {
        tuple(
            propose(rows, losses, cost_of, CARDINALITIES, restarts=1, seed=seed)
            .restarts[0]
            .tolist()
        )
        for seed in range(8)
    }
    assert len(begins) > 1


def test_proposals_are_made_on_one_thread_which_ends_with_them():
    threads = []

    def watched(rows):
        threads.append(torch.get_num_threads())
        return cost_of(rows)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        propose(*scored(), watched, CARDINALITIES, restarts=2)
        with pytest.raises(ValueError, match="restarts=0"):
            propose(*scored(), watched, CARDINALITIES, restarts=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}


def test_later_walks_use_the_surrogate_conditioned_on_the_ends_before():
    problem = Problem(2)
    rows, losses, alone = problem.rows, problem.losses, problem.acquisition
    found = propose(rows, losses, alone.cost_of, problem.cardinalities, restarts=2)
    end, (steps,) = walk(alone, found.restarts[:1])
    assert torch.equal(found.configurations[0], end[0])
    assert found.trace[0] == steps
    conditioned = alone.surrogate.condition_on(end)
    predicted = torch.cat([losses, alone.surrogate.predict(end)[0]])
    end, (steps,) = walk(Acquisition(conditioned, predicted, alone.cost_of), found.restarts[1:])
    assert torch.equal(found.configurations[1], end[0])
    assert moves_of(found.trace[1]) == moves_of(steps)
    _, (unconditioned,) = walk(alone, found.restarts[1:])
    assert moves_of(unconditioned) != moves_of(steps)


def test_proposals_walk_no_further_than_asked():
    rows, losses = scored()
    found = propose(rows, losses, cost_of, CARDINALITIES, restarts=4, max_steps=1)
    assert [len(steps) for steps in found.trace] == [1] * len(found.restarts)
    assert ((found.configurations - found.restarts).abs().sum(1) == 1).all()


@pytest.mark.parametrize("kind", ["equal losses", "duplicates", "equal costs", "two"])
def test_degenerate_sets_are_proposed_from(kind):
    rows, losses = scored()
    if kind == "equal losses":
        losses = torch.full_like(losses, 0.5)
    if kind == "duplicates":
        rows, losses = rows.repeat(2, 1), losses.repeat(2)
    if kind == "two":
        rows, losses = rows[:2], losses[:2]
    bits = cost_of if kind != "equal costs" else lambda rows: torch.full((len(rows),), 4.0).double()
    found = propose(rows, losses, bits, CARDINALITIES)
    assert len(found.configurations) > 0
    seen = set(map(tuple, rows.tolist()))
    assert not seen & set(map(tuple, found.configurations.tolist()))
    assert found.acquisition.isfinite().all()


def test_nothing_is_proposed_where_all_is_scored():
    rows = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    found = propose(rows, rows.sum(1).double(), lambda rows: 5.0 - rows.sum(1).double(), (2, 3))
    assert found.configurations.shape == (0, 2)
    assert found.acquisition.shape == (0,)


@pytest.mark.parametrize(
    ("rows", "losses", "message"),
    [
        (torch.zeros(1, 6), torch.zeros(1), "two scored configurations, got 1"),
        (torch.zeros(2, 6), torch.tensor([0.0, torch.nan]), "loss of configuration 1 is nan"),
        (torch.zeros(2, 5), torch.zeros(2), r"must be \(2, 6\)"),
        (torch.full((2, 6), 3), torch.zeros(2), "coordinate 2 of configuration 0 is 3; allowed"),
    ],
    ids=["one", "nan", "width", "range"],
)
def test_bad_sets_are_refused(rows, losses, message):
    with pytest.raises(ValueError, match=message):
        propose(rows.long(), losses, cost_of, CARDINALITIES)


@pytest.mark.parametrize("name", ["restarts", "max_steps"])
def test_counts_must_be_positive(name):
    rows, losses = scored()
    with pytest.raises(ValueError, match=f"{name}=0 must be an integer, at least 1"):
        propose(rows, losses, cost_of, CARDINALITIES, **{name: 0})


@pytest.mark.parametrize(
    "given", [lambda t: t.numpy(), lambda t: t.tolist()], ids=["numpy", "list"]
)
def test_arrays_and_lists_are_taken(given):
    rows, losses = scored()
    expected = propose(rows, losses, cost_of, CARDINALITIES, max_steps=3)
    found = propose(given(rows), given(losses), cost_of, CARDINALITIES, max_steps=3)
    assert torch.equal(found.configurations, expected.configurations)


@pytest.mark.parametrize("value", ["abc", None, [["a"]], torch.zeros(2, 6, dtype=torch.bool)])
@pytest.mark.parametrize("name", ["configurations", "losses", "cardinalities"])
def test_what_is_no_number_is_named(name, value):
    rows, losses = scored()
    given = {"configurations": rows, "losses": losses, "cardinalities": CARDINALITIES}
    with pytest.raises(TypeError, match=f"{name} must be real numbers in a tensor, an array"):
        propose(cost_of=cost_of, **(given | {name: value}))


def test_a_walk_does_not_stop_between_two_equal_neighbours():
    rows, losses = torch.tensor([[2, 3, 0], [4, 3, 1]]), torch.tensor([2.0, 2.0])

    def cost(rows):
        return 2.0 + rows[:, 0] + rows[:, 2].double()

    found = propose(rows, losses, cost, [7, 7, 7])
    acquisition = Acquisition(Surrogate(rows, losses, [7, 7, 7]), losses, cost)
    (end,) = found.configurations[:1]
    moves, costs = allowed_moves(cost, end[None], acquisition.surrogate.cardinalities)
    values, (here,) = acquisition.around(end[None], moves, costs)
    assert (values <= here * (1 + LEAST_GAIN)).all()


def restricted(seed, kind=Acquisition):
    """A space in which some choices of some layers are not allowed, some of it scored."""
    cost_of = IncrementalLayerTable(4)
    rows = torch.unique(cost_of.allowed(20, seed), dim=0)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(rows.shape[1], generator=generator, dtype=torch.float64)
    losses = torch.exp(-0.5 * rows.double()) @ weights
    acquisition = kind(Surrogate(rows, losses, cost_of.cardinalities), losses, cost_of)
    return acquisition, torch.cat([rows[acquisition.rows], cost_of.allowed(6, 50 + seed)])


@pytest.mark.parametrize("by", [0, 30, 2000])
@pytest.mark.parametrize("seed", range(3))
def test_a_walk_goes_around_what_is_not_allowed(seed, by):
    """Step by step as a plain loop does, also where the acquisition underflows."""
    plain, restarts = restricted(seed)
    acquisition, _ = restricted(seed, shrunk(by))
    ends, trace = walk(acquisition, restarts)
    assert sum(len(steps) for steps in trace) > len(trace)
    blocked = 0
    for start, end, steps in zip(restarts, ends, trace, strict=True):
        expected_end, expected = reference_walk(plain, start)
        assert moves_of(steps) == [(i, change) for i, change, _ in expected]
        assert torch.equal(end, expected_end)
        here = start.clone()
        for step in steps:
            here[step.coordinate] += step.change
            assert plain.cost_of(here[None]).isfinite()
        around = moves_from(here[None], plain.surrogate.cardinalities).applied(here[None])
        blocked += int(plain.cost_of(around).isinf().sum())
    assert blocked > 0


def test_a_walk_that_is_shut_in_stays():
    """The only way off a scored configuration is not allowed."""
    rows, losses = torch.tensor([[0], [2]]), torch.tensor([1.0, 0.2])

    def cost(rows):
        return torch.where(rows[:, 0] == 1, torch.inf, 2.0 + rows[:, 0].double())

    found = propose(rows, losses, cost, [3])
    assert found.configurations.shape == (0, 1)
    assert found.trace == [[], []]


def test_a_walk_that_begins_where_it_is_not_allowed_is_refused():
    acquisition, restarts = restricted(0)
    restarts[1, 2] = 3
    with pytest.raises(ValueError, match="the cost of configuration 1 is inf"):
        walk(acquisition, restarts)


def test_a_cost_that_is_nan_next_to_a_walk_is_refused():
    rows, losses = torch.tensor([[0], [2]]), torch.tensor([1.0, 0.2])
    with pytest.raises(ValueError, match="a cost is nan; allowed: finite values and"):
        propose(rows, losses, lambda rows: torch.where(rows[:, 0] == 1, torch.nan, 2.0), [3])
