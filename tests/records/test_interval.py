import numpy as np
import pytest

from coalora_lib.records import Interval, paired_bootstrap, student_interval


def test_the_interval_is_students():
    found = student_interval([1.0, 2.0, 3.0])
    half = found.high - found.mean
    assert (found.mean, half) == pytest.approx((2.0, 4.302653 / 3**0.5), rel=1e-5)
    assert found.low == pytest.approx(2 * found.mean - found.high)
    with pytest.raises(ValueError, match="needs at least two values, got 1"):
        student_interval([1.0])


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(-1, 1, False), (0, 1, False), (0.1, 1, True), (-1, -0.1, True)]
)
def test_an_interval_knows_whether_it_excludes_zero(low, high, excludes):
    assert Interval(0.05, low, high).excludes_zero == excludes


def test_an_interval_has_its_signs_and_holds_together():
    text = str(Interval(0.126, -1.0, 2.5))
    assert text.split() == ["+0.13", "(-1.00", "to", "+2.50)"]
    assert text.split(" ") == ["+0.13", "(-1.00\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}+2.50)"]
    assert f"{100 * Interval(0.00126, -0.01, 0.025):.3f}".startswith("+0.126 (-1.000")


def test_the_bootstrap_agrees_with_a_plain_one():
    generator = np.random.default_rng(1)
    first, second = generator.random((2, 3, 50)) < [[[0.8]], [[0.7]]]
    found = paired_bootstrap(first, second)
    difference = first.astype(float) - second
    assert found.mean == pytest.approx(difference.mean())
    draws = []
    for _ in range(4000):
        seeds, examples = generator.integers(3, size=3), generator.integers(50, size=50)
        draws.append(difference[seeds][:, examples].mean())
    expected = tuple(np.quantile(draws, [0.025, 0.975]))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.015)


def test_methods_that_agree_everywhere_do_not_differ():
    same = np.ones((2, 10))
    assert paired_bootstrap(same, same) == Interval(0, 0, 0)


def test_the_bootstrap_wants_pairs():
    with pytest.raises(ValueError, match=r"both must be \(seeds, examples\)"):
        paired_bootstrap(np.ones((2, 10)), np.ones((3, 10)))
