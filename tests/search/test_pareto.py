import pytest
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from hypothesis import given, settings
from hypothesis import strategies as st

from coalora_lib.search import hypervolume, pareto_front, reference_point, segment_pareto_filter

#: Few values, so that ties and duplicates are common.
point = st.tuples(st.integers(0, 6), st.integers(0, 6))
some_points = st.lists(point, min_size=1, max_size=20).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


def dominated(points, row):
    """Whether another row is no worse in both columns and better in one."""
    no_worse = (points <= points[row]).all(1)
    better = (points < points[row]).any(1)
    return bool((no_worse & better).any())


@given(some_points)
def test_front_is_every_distinct_undominated_point_once(points):
    front = pareto_front(points).tolist()
    expected = {tuple(points[i].tolist()) for i in range(len(points)) if not dominated(points, i)}
    assert [tuple(points[i].tolist()) for i in front] == sorted(expected, key=lambda p: p[1])
    for i in front:  # of equal rows the first
        assert i == (points == points[i]).all(1).nonzero()[0].item()


@settings(deadline=None)
@given(some_points)
def test_hypervolume_is_botorchs(points):
    reference = (6.5, 6.5)
    theirs = Hypervolume(torch.tensor([-6.5, -6.5], dtype=torch.float64)).compute(
        -points[pareto_front(points)]
    )
    assert hypervolume(points, reference) == pytest.approx(theirs)


def test_hypervolume_of_nothing_and_of_points_beyond_the_reference_is_zero():
    assert hypervolume(torch.empty(0, 2), (1.0, 1.0)) == 0
    assert hypervolume(torch.tensor([[2.0, 0.5], [0.5, 2.0]]), (1.0, 1.0)) == 0


def test_reference_lies_behind_every_point():
    points = torch.tensor([[0.2, 3.0], [0.9, 2.0]])
    loss, cost = reference_point(points)
    assert loss == pytest.approx(0.97)
    assert cost == pytest.approx(3.1)
    assert reference_point(torch.tensor([[0.5, 2.0]]))[0] > 0.5


@given(some_points, st.integers(1, 8))
def test_filter_keeps_the_front_of_every_segment(points, segments):
    kept = segment_pareto_filter(points, segments)
    costs = points[:, 1]
    width = (costs.max() - costs.min()).item() or 1.0
    segment = ((costs - costs.min()) / width * segments).long().clamp(max=segments - 1)
    expected = set()
    for value in segment.unique():
        rows = (segment == value).nonzero().flatten()
        expected |= {rows[i].item() for i in pareto_front(points[rows])}
    assert kept.tolist() == sorted(expected)
    assert set(segment[kept].tolist()) == set(segment.tolist())


def test_bad_points_are_refused():
    with pytest.raises(ValueError, match=r"point 1 is \[nan"):
        pareto_front(torch.tensor([[1.0, 1.0], [torch.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"must be \(n, 2\)"):
        pareto_front(torch.ones(3))
    with pytest.raises(ValueError, match="0 points"):
        segment_pareto_filter(torch.empty(0, 2))


@pytest.mark.parametrize("reference", [(torch.nan, 1.0), (1.0, torch.nan)])
def test_a_reference_that_is_no_number_is_refused(reference):
    with pytest.raises(ValueError, match="holds a NaN"):
        hypervolume(torch.tensor([[0.5, 0.5]]), reference)


def test_volumes_of_points_with_nan_are_refused():
    with pytest.raises(ValueError, match="point 1 is"):
        hypervolume(torch.tensor([[0.5, 0.5], [torch.nan, 0.6]]), (1.0, 1.0))


def test_integer_points_are_ranked():
    assert pareto_front(torch.tensor([[3, 1], [2, 2], [2, 3]])).tolist() == [0, 1]


@pytest.mark.parametrize("segments", [0, 2.5, float("nan")])
def test_segments_are_a_positive_integer(segments):
    with pytest.raises(ValueError, match="cannot be cut into"):
        segment_pareto_filter(torch.tensor([[0.5, 0.5]]), segments)


def test_a_point_without_a_segment_is_refused():
    with pytest.raises(ValueError, match=r"point 0 is .* no place in a segment"):
        segment_pareto_filter(torch.tensor([[torch.inf, 1.0], [0.5, 2.0]]))


def test_arrays_and_lists_are_taken():
    points = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]])
    for rows in (points.numpy(), points.tolist()):
        assert pareto_front(rows).tolist() == [1, 0]
        assert segment_pareto_filter(rows, 1).tolist() == [0, 1]
        assert hypervolume(rows, reference_point(rows)) == pytest.approx(
            hypervolume(points, reference_point(points))
        )
    with pytest.raises(TypeError, match=r"points must be real numbers .* got 'ab' of str"):
        pareto_front("ab")
