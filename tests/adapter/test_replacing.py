"""Terms in the place of a trained LoRA: the model was trained once, unquantized."""

import copy
import json

import pytest
import torch
from peft import PeftModel

from coalora_lib.adapter import CoaLora, OrderedFit
from coalora_lib.training import TrainingPlan, polish, train
from tests.adapter.test_export import attached
from tests.adapter.test_ordered import each_codes
from tests.conftest import tiny

KINDS = ("bert", "llama", "gpt2")
ADJUSTERS = ("none", "hypernetwork")


def batch():
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(3, 60, (60, 12), generator=generator)}


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(**batch()).logits


def far(model, target):
    """KL(target || model), a mean over predictions."""
    return (
        (target.softmax(-1) * (target.log_softmax(-1) - logits(model).log_softmax(-1)))
        .sum(-1)
        .mean()
        .item()
    )


def fitted(kind="bert", adjuster="none", **options):
    """A model whose LoRA does something, fitted for one configuration; and what is aimed at."""
    model = attached(kind, adjuster=adjuster)
    model.set_configuration(None)
    target = logits(model)
    model.set_configuration(2.5)
    before = far(model, target)
    OrderedFit(model, batch(), trained=True, **options).fit(2.5, rank=12)
    return model, target, before


@pytest.mark.parametrize("adjuster", ADJUSTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_near_the_trained_model(kind, adjuster):
    model, target, before = fitted(kind, adjuster)
    assert far(model, target) < 0.5 * before


@pytest.mark.parametrize("adjuster", ADJUSTERS)
def test_lora_is_off_there_and_nowhere_else(adjuster):
    model, *_ = fitted(adjuster=adjuster)
    seen = {}
    for budget in (2.5, 4.0, None, 2.5):
        model.set_configuration(budget)
        seen[budget] = logits(model)
    for factors in model.layers.factors():
        torch.nn.init.normal_(factors.l1, std=0.5)
    for budget, expected in seen.items():
        model.set_configuration(budget)
        assert torch.equal(logits(model), expected) == (budget == 2.5)


@pytest.mark.parametrize("adjuster", ADJUSTERS)
def test_a_copy_and_another_dtype_have_lora_off_too(adjuster):
    model, *_ = fitted(adjuster=adjuster)
    model.set_configuration(2.5)
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    torch.testing.assert_close(logits(model.double()).float(), expected, atol=1e-5, rtol=1e-5)


def test_by_default_lora_stays_beside_what_was_fitted():
    model = attached("bert", adjuster="none")
    OrderedFit(model, batch()).fit(2.5, rank=3)
    model.set_configuration(2.5)
    assert not model.layers.lora_off
    expected = logits(model)
    torch.nn.init.normal_(model.layers.factors()[0].l1, std=0.5)
    assert not torch.equal(logits(model), expected)


@each_codes
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_exported(kind, compensated, tmp_path):
    model, *_ = fitted(kind, spread=False, compensated=compensated)
    model.set_configuration(2.5)
    expected = logits(model)
    again = CoaLora.from_pretrained(model.save_pretrained(tmp_path / "saved"), tiny(kind))
    assert again.layers.lora_off
    assert torch.equal(logits(again), expected)
    model.export_peft_adapter(tmp_path / "adapter", weights="base_model")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 12  # the term alone
    base = type(tiny(kind)).from_pretrained(tmp_path / "adapter" / "base_model")
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(model.merge()), expected, atol=1e-5, rtol=1e-5)


def test_polish_goes_on_towards_the_trained_model():
    model, target, _ = fitted()
    fit = OrderedFit(model, batch(), trained=True, weighted=False)
    fit.fit(2.5, rank=1)
    texts = [{"input_ids": ids} for ids in batch()["input_ids"]]
    model.set_configuration(2.5)
    before = far(model, target)
    losses = polish(fit, 2.5, texts, steps=20)
    assert model.layers.lora_off
    assert far(model, target) < before
    assert losses[-1] < losses[0]


def test_a_configuration_without_lora_is_not_trained_on():
    model, *_ = fitted()
    examples = [{"input_ids": ids, "labels": torch.tensor(0)} for ids in batch()["input_ids"]]
    with pytest.raises(ValueError, match="fitted terms replace LoRA for it"):
        train(model, examples, [4.0, 2.5], TrainingPlan(steps=1, batch_size=1))
