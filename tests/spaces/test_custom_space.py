"""A space of one's own goes all the way: errors, allocation, training, search, files."""

from itertools import product

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import BertForSequenceClassification

from coalora_lib.adapter import CoaLora
from coalora_lib.allocation import Constraints, Limit, allocate, error_table
from coalora_lib.search import STRATEGIES, SearchPlan
from coalora_lib.spaces import (
    get_space,
    mean_bits_cost,
    random_at_bits,
    random_configuration,
    register_space,
    spaces,
)
from coalora_lib.training import TrainingPlan, evaluate, train
from tests.adapter.test_export import logits
from tests.conftest import tiny
from tests.spaces.toy import ROUNDING, RoundingSpace

#: The second of tiny BERT's widths, 32 and 48, can be cut into blocks of 12; the first cannot.
SHAPES = [(8, 32), (4, 48)]
PLAN = TrainingPlan(steps=6, batch_size=4, configurations_per_step=1)


def attached(**options):
    return CoaLora.attach(tiny("bert"), rank=4, alpha=8, space="rounding", **options)


def everywhere_allowed(configuration, shapes):
    return all(ROUNDING.allowed(c, s) for c, s in zip(configuration, shapes, strict=True))


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
    with pytest.raises(TypeError, match="is no ConfigurationSpace"):
        register_space("rounding")


def test_choices_have_the_fields_as_attributes_in_order():
    assert [(c.bits, c.block) for c in ROUNDING.choices] == list(product((3, 4, 6), (12, 16)))
    assert ROUNDING.cardinalities == (3, 2)
    assert [ROUNDING.index(choice) for choice in ROUNDING.choices] == list(range(6))
    assert ROUNDING.finest((8, 32)).block == 16
    assert ROUNDING.finest().block == 12


def test_errors_and_allocation_are_exact_and_mind_what_is_allowed():
    weights = {str(i): torch.randn(shape) for i, shape in enumerate(SHAPES)}
    errors = error_table(weights, "rounding")
    for row, weight in enumerate(weights.values()):
        for column, choice in enumerate(ROUNDING.choices):
            left = weight
            if ROUNDING.allowed(choice, weight.shape):
                left = weight - ROUNDING.quantize(weight, choice).dequantize()
            assert errors[row, column] == pytest.approx(left.double().square().sum().item())
    for budget in (4.2, 5.0, 6.1):
        found = allocate(errors, SHAPES, budget, "rounding")
        feasible = [
            each
            for each in product(ROUNDING.choices, repeat=2)
            if everywhere_allowed(each, SHAPES) and ROUNDING.mean_bits(each, SHAPES) <= budget
        ]
        best = min(
            sum(errors[i, ROUNDING.index(c)].item() for i, c in enumerate(each))
            for each in feasible
        )
        assert found.error == pytest.approx(best)
        assert found.bits <= budget
        assert everywhere_allowed(found.configs, SHAPES)
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
        assert everywhere_allowed(drawn, shapes)
        assert len({choice.block for choice in drawn}) == 2


@pytest.mark.parametrize("shapes", [SHAPES[:1] * 7, SHAPES[1:] * 7, SHAPES[:1]], ids=str)
def test_every_layer_draws_its_own_where_all_have_one_shape(shapes):
    generator = torch.Generator().manual_seed(0)
    for drawn in (
        random_configuration(shapes, generator, "rounding"),
        random_at_bits(shapes, 5.2, generator, "rounding"),
    ):
        assert len(drawn) == len(shapes)
        assert everywhere_allowed(drawn, shapes)


def test_a_model_takes_budgets_constraints_and_names_what_is_not_allowed():
    model = attached()
    model.set_configuration(5.5)
    assert model.bits <= 5.5
    assert everywhere_allowed(model.configuration, model.shapes)
    for (name, layer), choice in zip(
        model.layers.quantized.items(), model.configuration, strict=True
    ):
        expected = ROUNDING.quantize(tiny("bert").get_submodule(name).weight, choice)
        assert torch.equal(layer.weight, expected.dequantize()), name
    model.set_configuration(Constraints(allowed={"bits": (6,)}))
    assert {choice.bits for choice in model.configuration} == {6}
    with pytest.raises(ValueError, match=r"query: .*block=12.* is not allowed for the shape"):
        model.set_configuration([ROUNDING.choices[0]] * 12)


def test_mean_bits_cost_is_infinite_where_nothing_is_allowed():
    cost = mean_bits_cost("rounding", SHAPES)
    configurations = list(product(ROUNDING.choices, repeat=2))
    for found, each in zip(cost(ROUNDING.to_flat(configurations)), configurations, strict=True):
        expected = ROUNDING.mean_bits(each, SHAPES)
        expected = expected if everywhere_allowed(each, SHAPES) else torch.inf
        assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "local search"])
def test_training_with_the_search_between_and_a_checkpoint(examples, tmp_path, strategy):
    search = SearchPlan(rounds=2, restarts=2, max_steps=3, proposals=4, strategy=strategy)
    ended = []
    for _ in range(2):  # the second run finds the first one's last checkpoint
        model = attached(error_features=True, output_bias=True)
        generator = torch.Generator().manual_seed(0)
        first = [random_configuration(model.shapes, generator, "rounding") for _ in range(4)]
        history = train(
            model,
            examples,
            [4.5, 6.0, *first],
            PLAN,
            search=search,
            scoring=examples[:8],
            checkpoints=tmp_path,
        )
        assert len(history.rounds) == 1
        proposed = history.rounds[0].configurations[-history.rounds[0].proposed :]
        for row in proposed:
            assert everywhere_allowed(ROUNDING.from_indices(row), model.shapes)
        ended.append(evaluate(model, examples, 5.0).loss)
    assert ended[0] == ended[1]


@pytest.mark.parametrize("options", [{}, {"start": "residual", "frozen_rank": 3}], ids=str)
def test_it_is_saved_read_back_and_exported(tmp_path, options):
    model = attached(**options)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            nn.init.normal_(parameter, std=0.1)
    model.training_set = [model.resolve(4.5), model.resolve(6.0)]
    model.set_configuration(5.0)
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    again = CoaLora.from_pretrained(tmp_path / "saved", tiny("bert"))
    assert again.space is ROUNDING
    assert again.training_set == model.training_set
    assert torch.equal(logits(again), expected)
    model.export_peft_adapter(tmp_path / "adapter", weights="base_model")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "adapter" / "base_model")
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="Rounded, for which there is no packed file"):
        model.export_peft_adapter(tmp_path / "packed", weights="packed")
