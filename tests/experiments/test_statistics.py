import numpy as np
import pytest

from coalora_lib.experiments.statistics import interval, paired_bootstrap


def test_the_interval_is_students():
    middle, low, high = interval([1.0, 2.0, 3.0])
    assert (middle, high - middle) == pytest.approx((2.0, 4.302653 / 3**0.5), rel=1e-5)
    assert low == pytest.approx(2 * middle - high)


def test_the_bootstrap_agrees_with_a_plain_one():
    generator = np.random.default_rng(1)
    first, second = generator.random((2, 3, 50)) < [[[0.8]], [[0.7]]]
    mean, low, high = paired_bootstrap(first, second)
    difference = first.astype(float) - second
    assert mean == pytest.approx(difference.mean())
    draws = []
    for _ in range(4000):
        seeds, examples = generator.integers(3, size=3), generator.integers(50, size=50)
        draws.append(difference[seeds][:, examples].mean())
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.015)


def test_methods_that_agree_everywhere_do_not_differ():
    same = np.ones((2, 10))
    assert paired_bootstrap(same, same) == (0, 0, 0)


def test_the_bootstrap_wants_pairs():
    with pytest.raises(ValueError, match=r"both must be \(seeds, examples\)"):
        paired_bootstrap(np.ones((2, 10)), np.ones((3, 10)))
