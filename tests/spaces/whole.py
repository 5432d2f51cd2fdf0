"""What every space must do on a model, from its error table to its files."""

from itertools import product

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import BertForSequenceClassification

from coalora_lib.adapter import CoaLora
from coalora_lib.allocation import allocate, error_table
from coalora_lib.search import SearchPlan
from coalora_lib.spaces import random_configuration
from coalora_lib.training import evaluate, train
from tests.adapter.test_export import logits


def everywhere_allowed(space, configuration, shapes):
    return all(space.allowed(c, s) for c, s in zip(configuration, shapes, strict=True))


def attached(space, base, **options):
    return CoaLora.attach(base, rank=4, alpha=8, space=space.name, **options)


def check_errors(space, weights):
    """By quantizing with every choice; the table is returned."""
    errors = error_table(weights, space.name)
    for row, weight in enumerate(weights.values()):
        for column, choice in enumerate(space.choices):
            left = weight
            if space.allowed(choice, weight.shape):
                left = weight - space.quantize(weight, choice).dequantize()
            assert errors[row, column] == pytest.approx(left.double().square().sum().item())
    return errors


def check_allocation(space, errors, shapes, budgets):
    """By trying every configuration."""
    for budget in budgets:
        found = allocate(errors, shapes, budget, space.name)
        feasible = [
            each
            for each in product(space.choices, repeat=len(shapes))
            if everywhere_allowed(space, each, shapes) and space.mean_bits(each, shapes) <= budget
        ]
        best = min(sum(errors[i, space.index(c)].item() for i, c in enumerate(e)) for e in feasible)
        assert found.error == pytest.approx(best)
        assert found.bits <= budget
        assert everywhere_allowed(space, found.configs, shapes)


def check_layers(model, base):
    """Each has the weight of its choice, made by the space alone."""
    for (name, layer), choice in zip(
        model.layers.quantized.items(), model.configuration, strict=True
    ):
        expected = model.space.quantize(base.get_submodule(name).weight, choice)
        assert torch.equal(layer.weight, expected.dequantize()), name


def check_training(space, make_base, budgets, plan, examples, folder, strategy):
    """With a search between; a second run finds the first one's last checkpoint."""
    search = SearchPlan(rounds=2, restarts=2, max_steps=3, proposals=4, strategy=strategy)
    ended = []
    for _ in range(2):
        model = attached(space, make_base(), error_features=True, output_bias=True)
        generator = torch.Generator().manual_seed(0)
        first = [random_configuration(model.shapes, generator, space.name) for _ in range(4)]
        history = train(
            model,
            examples,
            [*budgets, *first],
            plan,
            search=search,
            scoring=examples[:8],
            checkpoints=folder,
        )
        assert len(history.rounds) == 1
        proposed = history.rounds[0].configurations[-history.rounds[0].proposed :]
        for row in proposed:
            assert everywhere_allowed(space, space.from_indices(row), model.shapes)
        ended.append(evaluate(model, examples, 5.0).loss)
    assert ended[0] == ended[1]


def check_files(space, make_base, budgets, options, folder, unpacked):
    """Saved and read back, and exported; ``unpacked`` is what has no packed file."""
    model = attached(space, make_base(), **options)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            nn.init.normal_(parameter, std=0.1)
    model.training_set = [model.resolve(budget) for budget in budgets]
    model.set_configuration(5.0)
    expected = logits(model)
    model.save_pretrained(folder / "saved")
    again = CoaLora.from_pretrained(folder / "saved", make_base())
    assert again.space is space
    assert again.training_set == model.training_set
    assert torch.equal(logits(again), expected)
    model.export_peft_adapter(folder / "adapter", weights="base_model")
    plain = BertForSequenceClassification.from_pretrained(folder / "adapter" / "base_model")
    peft = PeftModel.from_pretrained(plain, folder / "adapter")
    torch.testing.assert_close(logits(peft), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=f"{unpacked}, for which there is no packed file"):
        model.export_peft_adapter(folder / "packed", weights="packed")
