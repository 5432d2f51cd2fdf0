"""What is handed over as a configuration, a budget, an error table or a plan."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coalora_lib.allocation import Constraints, allocate
from coalora_lib.spaces import NORMAL_FLOAT
from coalora_lib.training import TrainingPlan, train
from tests.fuzz.documents import JUNK, changed
from tests.fuzz.judge import inputs, judge

CHOICES = st.sampled_from(NORMAL_FLOAT.choices)
NUMBERS = st.one_of(
    st.floats(0, 9),
    JUNK,
    st.builds(np.float64, st.floats(1, 9)),
    st.builds(torch.tensor, st.floats(1, 9)),
    st.builds(np.full, st.integers(1, 3), st.floats(1, 9)),
    st.builds(complex, st.floats(1, 9), st.floats(0, 1)),
)
FIXED = st.dictionaries(
    st.sampled_from([0, 1, -1, 99, "bert", 0.5, None, (1,)]), CHOICES | JUNK, max_size=2
)
LIMITS = {
    "budget": 5.1,
    "allowed": {"weight_bits": [4, 8], "block_size": [64], "scale_dtype": ["fp16"]},
    "fixed": {},
    "max_bytes": 10**6,
    "limits": (),
}
CONSTRAINTS = st.one_of(
    changed(LIMITS).filter(lambda made: isinstance(made, dict) and made.keys() <= LIMITS.keys()),
    st.fixed_dictionaries({"budget": NUMBERS}),
    st.fixed_dictionaries({"max_bytes": NUMBERS}),
    st.fixed_dictionaries({"fixed": FIXED}),
)


def configurations(model):
    """Configurations by layer and by name with one or two layers changed, and what is none."""
    whole = st.lists(CHOICES, min_size=len(model.layer_names), max_size=len(model.layer_names))
    broken = whole.flatmap(changed)
    named = whole.map(lambda each: dict(zip(model.layer_names, each, strict=True))).flatmap(changed)
    constraints = CONSTRAINTS.map(lambda limits: Constraints(**limits))
    return st.one_of(whole, broken, named, constraints, constraints, NUMBERS)


@inputs(90)
@given(data=st.data())
def test_set_configuration(data, adapted):
    configuration = data.draw(configurations(adapted).filter(lambda each: each is not None))
    before, weight = adapted.configuration, first_weight(adapted)
    if judge("configurations", lambda: adapted.resolve(configuration)) is None:
        with pytest.raises((ValueError, TypeError)):
            adapted.set_configuration(configuration)
        assert adapted.configuration == before
        assert torch.equal(first_weight(adapted), weight)
    else:
        adapted.set_configuration(configuration)


def first_weight(model):
    """What the first layer computes with."""
    return next(iter(model.layers.quantized.values())).weight.clone()


SHAPES = [(16, 32), (32, 16), (64,)]


@pytest.fixture(scope="module")
def errors():
    torch.manual_seed(0)
    return torch.rand(len(SHAPES), len(NORMAL_FLOAT.choices), dtype=torch.float64)


TABLES = st.one_of(
    *[st.just(lambda errors: errors)] * 10,
    st.just(lambda errors: errors.numpy()),
    st.just(lambda errors: errors.tolist()),
    st.just(lambda errors: errors[:, :-1]),
    st.just(lambda errors: errors * float("nan")),
    st.just(lambda errors: -errors),
    st.just(lambda errors: (errors * 9).long()),
    st.just(lambda errors: errors.to(torch.complex64)),
    st.just(lambda errors: errors * 1e300),
    st.just(lambda errors: errors.half()),
    JUNK.map(lambda junk: lambda errors: junk),
)


@inputs(70)
@given(
    TABLES,
    st.sampled_from([SHAPES] * 3 + [None]),
    changed(SHAPES),
    CONSTRAINTS,
    st.sampled_from(["nf", "int"]) | JUNK,
)
def test_allocate(errors, table, shapes, others, limits, space):
    shapes = shapes or others
    judge("configurations", lambda: allocate(table(errors), shapes, space=space, **limits))


PLAN = {
    each.name: each.default for each in fields(TrainingPlan) if each.name != "steps"
} | {"steps": 1, "batch_size": 4, "configurations_per_step": 1}  # fmt: skip


@inputs(40)
@given(changed(PLAN))
def test_plans(plan):
    if isinstance(plan, dict) and "steps" in plan and plan.keys() <= PLAN.keys():
        judge("plans", lambda: TrainingPlan(**plan), [*map(str, plan), "teacher"])


@inputs(10)
@given(data=st.data())
def test_train(data, fresh, adapted, examples):
    plan = data.draw(changed(PLAN))
    chosen = data.draw(st.lists(configurations(adapted), max_size=2) | JUNK | st.just([3.0]))
    try:
        plan = TrainingPlan(**plan)
        small = (plan.steps, plan.batch_size, plan.configurations_per_step) < (3, 41, 3)
    except (TypeError, ValueError):
        return
    if small:
        folder = fresh()
        judge(
            "plans",
            lambda: train(adapted, examples, chosen, plan, checkpoints=folder / "checkpoints"),
        )
