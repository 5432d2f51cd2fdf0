import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coalora_lib.allocation import allocate, error_table, knapsack, undominated
from coalora_lib.allocation.solver import Limit, integer_program
from coalora_lib.quantization import BlockwiseChoice, quantize
from coalora_lib.spaces import NORMAL_FLOAT as NF
from coalora_lib.spaces import get_space


def random_errors(layers):
    """Errors that fall with bits, as real ones do, and cross often."""
    noise = torch.rand(layers, 432, dtype=torch.float64)
    return (4.0 ** -NF.bits_table()) * (0.5 + noise) * (1 + torch.arange(layers)[:, None])


def test_error_table_is_the_quantizers_error():
    weights = {"a": torch.randn(40, 30), "b": torch.randn(130, 140)}
    table = error_table(weights)
    for row, weight in enumerate(weights.values()):
        for config in NF.choices[::31]:
            error = (quantize(weight, config).dequantize() - weight).double().square().sum()
            assert table[row, NF.index(config)] == pytest.approx(error.item(), rel=1e-4)


@pytest.mark.parametrize("space", ["nf", "int"])
def test_importance_weighs_the_squares(space):
    weights = {"a": torch.randn(40, 30), "b": torch.randn(130, 140)}
    importance = {name: torch.rand_like(weight) for name, weight in weights.items()}
    table = error_table(weights, space, importance)
    for row, (name, weight) in enumerate(weights.items()):
        for number, config in enumerate(get_space(space).choices[::53]):
            squares = (quantize(weight, config).dequantize() - weight).double().square()
            expected = (importance[name] * squares).sum().item()
            assert table[row, 53 * number] == pytest.approx(expected, rel=1e-4)
    ones = {name: torch.ones_like(weight) for name, weight in weights.items()}
    torch.testing.assert_close(error_table(weights, space, ones), error_table(weights, space))


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ({}, "layer a: has no importance"),
        ({"a": torch.ones(2)}, r"layer a: importance is \(2,\), not \(3,\)"),
        ({"a": -torch.ones(3)}, "layer a: importance holds a negative number"),
    ],
    ids=["missing", "shape", "negative"],
)
def test_importance_must_fit(importance, message):
    with pytest.raises(ValueError, match=message):
        error_table({"a": torch.ones(3)}, importance=importance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_error_table_on_a_gpu():
    weights = {"a": torch.randn(300, 256), "b": torch.randn(16, 16)}
    there = error_table({name: weight.cuda() for name, weight in weights.items()})
    torch.testing.assert_close(there, error_table(weights), rtol=1e-5, atol=0)


def test_sampled_pieces_estimate_the_table():
    weights = {"a": torch.randn(512, 512)}
    whole, sampled = error_table(weights), error_table(weights, pieces=4)
    assert ((sampled - whole).abs() / whole).mean() < 0.05
    assert torch.equal(error_table(weights, pieces=99), whole)


def test_error_table_names_the_layer_at_fault():
    with pytest.raises(ValueError, match=r"layer bad: .*NaN"):
        error_table({"good": torch.ones(3), "bad": torch.tensor([torch.nan])})


def test_undominated_choices_are_those_nothing_beats():
    errors, bits = random_errors(1)[0], NF.bits_table()
    kept = set(undominated(errors, bits).tolist())
    for i in range(len(errors)):
        beaten = (
            (errors <= errors[i]) & (bits <= bits[i]) & ((errors < errors[i]) | (bits < bits[i]))
        )
        assert (i in kept) == (not beaten.any())


@pytest.mark.parametrize("budget", [2.2, 2.8, 4.1, 6.0, 20.0])
def test_allocation_is_the_optimum_by_enumeration(budget):
    errors, bits, sizes = random_errors(2), NF.bits_table(), [64, 192]
    best = min(
        errors[0, i] + errors[1, j]
        for i, j in product(
            undominated(errors[0], bits).tolist(), undominated(errors[1], bits).tolist()
        )
        if (sizes[0] * bits[i] + sizes[1] * bits[j]) / sum(sizes) <= budget + 1e-12
    )
    found = allocate(errors, sizes, budget)
    assert found.error == pytest.approx(best.item(), rel=1e-9)
    assert found.bits <= budget + 1e-12
    assert found.gap == 0


def test_a_budget_below_the_smallest_is_refused_with_that_number():
    with pytest.raises(ValueError, match=r"2\.0 bits is not feasible: the smallest is 2\.032227"):
        allocate(random_errors(2), [1, 1], 2.0)
    with pytest.raises(ValueError, match="not feasible"):
        allocate(random_errors(2), [1, 1], float("nan"))


@pytest.mark.parametrize("budget", [2.1, 3.3, 4.0, 5.5])
def test_pruning_and_the_knapsack_change_nothing(budget):
    """The integer program over all 432 choices of every layer, by HiGHS, has the same optimum."""
    errors, sizes = random_errors(10), [64, 64, 64, 64, 256] * 2
    everything = [torch.arange(432)] * len(sizes)
    stored = ((NF.bits_table() * 1024).round().long() * torch.tensor(sizes)[:, None]).numpy()
    limit = Limit(stored, int(budget * 1024 * sum(sizes)))
    picked, gap = integer_program(errors, everything, [limit])
    best = sum(float(errors[i, row]) for i, row in enumerate(picked))
    assert gap == 0
    assert allocate(errors, sizes, budget).error == pytest.approx(best, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_knapsack_is_the_optimum_by_enumeration(data):
    """Small whole numbers make ties and budgets that are met exactly."""
    costs, weights = [], []
    for _ in range(data.draw(st.integers(1, 5))):
        rising = data.draw(st.sets(st.integers(0, 9), min_size=1, max_size=4))
        falling = data.draw(st.sets(st.integers(0, 12), min_size=len(rising), max_size=len(rising)))
        weights.append(np.array(sorted(rising)))
        costs.append(np.array(sorted(falling, reverse=True), dtype=float))
    smallest = sum(int(weight[0]) for weight in weights)
    limit = smallest + data.draw(st.integers(0, 40))
    picked = knapsack.solve(costs, weights, limit)
    assert sum(int(w[i]) for w, i in zip(weights, picked, strict=True)) <= limit
    best = min(
        sum(c[i] for c, i in zip(costs, some, strict=True))
        for some in product(*(range(len(w)) for w in weights))
        if sum(w[i] for w, i in zip(weights, some, strict=True)) <= limit
    )
    assert sum(c[i] for c, i in zip(costs, picked, strict=True)) == best


def test_too_many_partial_solutions_fall_back_on_the_integer_program(monkeypatch):
    errors, sizes = random_errors(6), [64] * 6
    expected = allocate(errors, sizes, 3.0).error
    monkeypatch.setattr(knapsack, "MOST_STATES", 1)
    assert allocate(errors, sizes, 3.0).error == pytest.approx(expected, rel=1e-9)


def test_a_device_allows_some_choices_and_fixes_some_layers():
    errors, names = random_errors(3), ["query", "key", "value"]
    fixed = BlockwiseChoice(8, 8, "fp32", 16, 16)
    found = allocate(
        errors,
        [64] * 3,
        6.0,
        allowed={"weight_bits": (3, 4), "scale_dtype": ("fp16",)},
        fixed={"key": fixed},
        names=names,
    )
    assert found.configs[1] == fixed
    for config in (found.configs[0], found.configs[2]):
        assert config.weight_bits in (3, 4)
        assert config.scale_dtype == "fp16"
    assert found == allocate(
        errors,
        [64] * 3,
        6.0,
        allowed={"weight_bits": (3, 4), "scale_dtype": ("fp16",)},
        fixed={1: fixed},
    )


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"allowed": {"weight_bits": 4}}, "weight_bits=4: give the allowed values as a tuple"),
        ({"allowed": {"scale_dtype": "fp16"}}, "scale_dtype='fp16': give the allowed values"),
        ({"fixed": {0: 4}}, "fixed layer 0: 4 is not a choice of the space"),
        ({"fixed": {0.5: NF.choices[0]}}, "fixed layer 0.5 is neither a position nor a name"),
        ({"fixed": [0]}, r"fixed=\[0\] must be a dictionary"),
        ({"allowed": 4.0}, "allowed=4.0 must be a dictionary"),
        ({"budget": "3"}, "budget='3' must be a number"),
        ({"max_bytes": [300]}, r"max_bytes=\[300\] must be a number"),
        ({"limits": "no"}, "limits: 'n' is not a Limit"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_limits_of_the_wrong_type_are_named(limits, message):
    with pytest.raises(TypeError, match=message):
        allocate(random_errors(3), [64] * 3, **limits)


def test_a_limit_in_bytes_counts_padding_and_offsets():
    errors, sizes = random_errors(3), [100, 200, 300]
    limit = 300
    found = allocate(errors, sizes, max_bytes=limit)
    stored = sum(
        quantize(torch.randn(size), config).nbytes
        for size, config in zip(sizes, found.configs, strict=True)
    )
    assert found.nbytes == stored <= limit
    kept = [[c for c in NF.choices if c.block_size == 64] for _ in sizes]
    for configs in zip(*(row[::7] for row in kept), strict=True):  # nothing tried by hand is better
        if sum(c.nbytes(n) for c, n in zip(configs, sizes, strict=True)) <= limit:
            error = sum(float(errors[i, NF.index(c)]) for i, c in enumerate(configs))
            assert found.error <= error


def test_a_budget_and_a_limit_in_bytes_hold_together():
    errors, sizes = random_errors(3), [100, 200, 300]
    smallest = allocate(errors, sizes, max_bytes=10**6, budget=NF.bits_table().min().item()).nbytes
    for budget, limit in ((2.5, 10**6), (20.0, 260), (3.0, 238), (3.4, 252)):
        found = allocate(errors, sizes, budget, max_bytes=max(limit, smallest))
        assert found.bits <= budget + 1e-12
        assert found.nbytes <= max(limit, smallest)
        assert found.gap == 0


def test_without_limits_every_layer_takes_its_best():
    errors = random_errors(3)
    assert allocate(errors, [1, 2, 3]).error == sum(errors.min(1).values.tolist())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"allowed": {"bits": (4,)}}, "'bits' is not a field of a choice; allowed: weight_bits"),
        ({"allowed": {"weight_bits": (4, 5)}}, r"weight_bits=\(4, 5\) is not among \(2, 3, 4, 8\)"),
        ({"allowed": {"weight_bits": ()}}, r"weight_bits=\(\) is not among"),
        ({"fixed": {"key": NF.choices[0]}}, "fixed layer 'key' is not among the names"),
        ({"fixed": {2: NF.choices[0]}}, r"fixed layer 2 is outside 0\.\.1"),
        (
            {"allowed": {"weight_bits": (8,)}},
            r"4\.0 bits is not feasible: .* 8\.032227",
        ),
        ({"max_bytes": 9}, "a limit of 9 bytes is not feasible: the smallest is"),
    ],
    ids=["field", "value", "none", "name", "position", "budget", "bytes"],
)
def test_constraints_that_cannot_be_met_are_named(limits, message):
    with pytest.raises(ValueError, match=message):
        allocate(random_errors(2), [64, 64], 4.0, **limits)


def test_the_smallest_budget_is_met_exactly():
    found = allocate(random_errors(3), [5, 7, 11], float(NF.bits_table().min()))
    assert found.bits == NF.bits_table().min()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"errors must be \(3, 432\)"):
        allocate(random_errors(2), [1, 1, 1], 4.0)


def test_the_solver_prints_nothing(capfd):
    for budget in (2.3, 2.9, 5.1):
        allocate(random_errors(12), [100] * 12, budget)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("limit", ["budget", "max_bytes"])
@pytest.mark.parametrize("value", [math.inf, 10**400], ids=["infinity", "beyond floats"])
def test_a_limit_beyond_all_is_no_limit(limit, value):
    errors = random_errors(3)
    assert allocate(errors, [64] * 3, **{limit: value}) == allocate(errors, [64] * 3)


@pytest.mark.parametrize(
    ("shapes", "error", "message"),
    [
        (7, TypeError, "shapes=7 must be a list of shapes"),
        ([(8, 8), (8, 0), (8,)], ValueError, r"shape 1, \(8, 0\), must be of positive whole"),
        ([(8, 8), "8", (8,)], ValueError, "shape 1, '8', must be of positive whole numbers"),
        ([2**62, 8, 8], ValueError, "at most 549755813888"),
    ],
    ids=["number", "nothing", "text", "huge"],
)
def test_what_is_no_shape_is_named(shapes, error, message):
    with pytest.raises(error, match=message):
        allocate(random_errors(3), shapes, 3.0)


def test_an_error_table_is_a_tensor_of_real_numbers():
    errors = random_errors(3)
    for wrong in (errors.numpy(), errors.tolist(), errors.to(torch.complex64)):
        with pytest.raises(TypeError, match="errors must be a tensor of real numbers"):
            allocate(wrong, [64] * 3, 3.0)
    assert allocate(errors.bfloat16(), [64] * 3, 3.0).bits <= 3.0
