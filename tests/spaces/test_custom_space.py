"""A space of one's own goes all the way: errors, allocation, training, search, files."""

from functools import partial
from itertools import product

import pytest
import torch

from coalora_lib.allocation import Constraints, Limit, allocate, error_table
from coalora_lib.search import STRATEGIES
from coalora_lib.spaces import (
    get_space,
    mean_bits_cost,
    random_at_bits,
    random_configuration,
    register_space,
    spaces,
)
from coalora_lib.training import TrainingPlan
from tests.conftest import tiny
from tests.spaces.toy import ROUNDING, RoundingSpace
from tests.spaces.whole import (
    attached,
    check_allocation,
    check_errors,
    check_files,
    check_layers,
    check_training,
    everywhere_allowed,
)

#: The second of tiny BERT's widths, 32 and 48, can be cut into blocks of 12; the first cannot.
SHAPES = [(8, 32), (4, 48)]
PLAN = TrainingPlan(steps=6, batch_size=4, configurations_per_step=1)


def test_it_is_found_by_its_name_and_no_other_takes_it():
    assert spaces()[:3] == ("nf", "int", "gguf")
    assert "rounding" in spaces()
    assert get_space("rounding") is get_space(ROUNDING) is ROUNDING
    assert register_space(ROUNDING) is ROUNDING
    with pytest.raises(ValueError, match="named 'rounding' is registered already"):
        register_space(RoundingSpace())
    with pytest.raises(
        ValueError, match=r"space='awq' is not known; allowed: nf, int, gguf.*, rounding"
    ):
        get_space("awq")
    with pytest.raises(TypeError, match="is not a ConfigurationSpace"):
        register_space("rounding")


def test_choices_have_the_fields_as_attributes_in_order():
    assert [(c.bits, c.block) for c in ROUNDING.choices] == list(product((3, 4, 6), (12, 16)))
    assert ROUNDING.cardinalities == (3, 2)
    assert [ROUNDING.index(choice) for choice in ROUNDING.choices] == list(range(6))
    assert ROUNDING.finest((8, 32)).block == 16
    assert ROUNDING.finest().block == 12


def test_errors_and_allocation_are_exact_and_mind_what_is_allowed():
    weights = {str(i): torch.randn(shape) for i, shape in enumerate(SHAPES)}
    errors = check_errors(ROUNDING, weights)
    check_allocation(ROUNDING, errors, SHAPES, (4.2, 5.0, 6.1))
    with pytest.raises(ValueError, match=r"smallest is 4\.0000"):
        allocate(errors, SHAPES, 3.9, "rounding")
    with pytest.raises(ValueError, match=r"fixed layer 0: .*is not allowed for \(8, 32\)"):
        allocate(errors, SHAPES, space="rounding", fixed={0: ROUNDING.choices[0]})


def test_any_additive_cost_can_be_a_limit():
    weights = {str(i): torch.randn(shape) for i, shape in enumerate(SHAPES)}
    errors = error_table(weights, "rounding")
    microseconds = torch.tensor([[3, 1, 4, 2, 6, 5]] * 2).numpy()
    found = allocate(
        errors, SHAPES, space="rounding", limits=[Limit(microseconds, 5, "microseconds")]
    )
    spent = sum(microseconds[0][ROUNDING.index(choice)] for choice in found.configs)
    assert spent <= 5
    with pytest.raises(ValueError, match="1 on 'microseconds' is not feasible: the smallest is 2"):
        allocate(errors, SHAPES, space="rounding", limits=[Limit(microseconds, 1, "microseconds")])


def test_random_configurations_are_allowed():
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES * 50
    for drawn in (
        random_configuration(shapes, generator, "rounding"),
        random_at_bits(shapes, 5.2, generator, "rounding"),
    ):
        assert everywhere_allowed(ROUNDING, drawn, shapes)
        assert len({choice.block for choice in drawn}) == 2


@pytest.mark.parametrize("shapes", [SHAPES[:1] * 7, SHAPES[1:] * 7, SHAPES[:1]], ids=str)
def test_every_layer_draws_its_own_where_all_have_one_shape(shapes):
    generator = torch.Generator().manual_seed(0)
    for drawn in (
        random_configuration(shapes, generator, "rounding"),
        random_at_bits(shapes, 5.2, generator, "rounding"),
    ):
        assert len(drawn) == len(shapes)
        assert everywhere_allowed(ROUNDING, drawn, shapes)


def test_a_model_takes_budgets_constraints_and_names_what_is_not_allowed():
    model = attached(ROUNDING, tiny("bert"))
    model.set_configuration(5.5)
    assert model.bits <= 5.5
    assert everywhere_allowed(ROUNDING, model.configuration, model.shapes)
    check_layers(model, tiny("bert"))
    model.set_configuration(Constraints(allowed={"bits": (6,)}))
    assert {choice.bits for choice in model.configuration} == {6}
    with pytest.raises(ValueError, match=r"query: .*block=12.* is not allowed for the shape"):
        model.set_configuration([ROUNDING.choices[0]] * 12)


def test_mean_bits_cost_is_infinite_where_nothing_is_allowed():
    cost = mean_bits_cost("rounding", SHAPES)
    configurations = list(product(ROUNDING.choices, repeat=2))
    for found, each in zip(cost(ROUNDING.to_flat(configurations)), configurations, strict=True):
        expected = ROUNDING.mean_bits(each, SHAPES)
        expected = expected if everywhere_allowed(ROUNDING, each, SHAPES) else torch.inf
        assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "local search"])
def test_training_with_the_search_between_and_a_checkpoint(examples, tmp_path, strategy):
    check_training(ROUNDING, partial(tiny, "bert"), (4.5, 6.0), PLAN, examples, tmp_path, strategy)


@pytest.mark.parametrize("options", [{}, {"start": "residual", "frozen_rank": 3}], ids=str)
def test_it_is_saved_read_back_and_exported(tmp_path, options):
    check_files(ROUNDING, partial(tiny, "bert"), (4.5, 6.0), options, tmp_path, "Rounded")
