import pytest
import torch
from torch import nn

from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.quantization import BlockwiseChoice, quantize
from coalora_lib.training import TrainingPlan, evaluate, train
from coalora_lib.training.baselines import full_fine_tuning, lora, lq_lora
from tests.conftest import tiny

PLAN = TrainingPlan(steps=40, batch_size=8, configurations_per_step=1, learning_rate=1e-2)
CONFIGURATION = [BlockwiseChoice(3, 8, "fp32", 16, 16)] * 12


def batch():
    return {"input_ids": torch.arange(6, 26).reshape(2, 10)}


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(**batch()).logits


METHODS = {
    "lora": lambda: lora(tiny("bert"), rank=4, alpha=8),
    "lq-lora": lambda: lq_lora(tiny("bert"), CONFIGURATION, rank=4, alpha=8),
    "full": lambda: full_fine_tuning(tiny("bert")),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_baseline_trains_through_the_same_loop(method, examples):
    model = METHODS[method]()
    history = train(model, examples, None, PLAN)
    assert sum(history.losses[-5:]) < 0.6 * sum(history.losses[:5])
    assert evaluate(model, examples).accuracy > 0.85


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_lq_lora_starts_closer_to_the_pretrained_weights_than_quantization_alone(kind):
    base = tiny(kind)
    names = adaptable_layers(base)
    weights = {name: base.get_submodule(name).weight.detach().clone() for name in names}
    config = BlockwiseChoice(2, 8, "fp32", 16, 16)
    lq_lora(base, [config] * len(names), rank=8, alpha=4)
    for name, weight in weights.items():
        layer = base.get_submodule(name)
        split = layer.base_layer.weight + layer.get_delta_weight("default")
        alone = quantize(weight, config).dequantize()
        assert torch.linalg.norm(split - weight) < 0.8 * torch.linalg.norm(alone - weight)


def test_lq_lora_with_importance_splits_differently():
    importance = {
        name: torch.rand(tiny("bert").get_submodule(name).weight.shape) + 0.01
        for name in adaptable_layers(tiny("bert"))
    }
    plain = lq_lora(tiny("bert"), CONFIGURATION, rank=4)
    weighted = lq_lora(tiny("bert"), CONFIGURATION, rank=4, importance=importance)
    assert not torch.allclose(logits(plain), logits(weighted))


def test_what_does_not_fit_is_named(examples):
    with pytest.raises(ValueError, match="11 choices for 12 layers"):
        lq_lora(tiny("bert"), CONFIGURATION[1:])
    with pytest.raises(ValueError, match=r"PeftModel.* has no configurations to train over"):
        train(lora(tiny("bert")), examples, [CONFIGURATION], PLAN)


def test_full_fine_tuning_trains_everything():
    model = tiny("bert")
    nn.Module.requires_grad_(model, False)
    assert all(p.requires_grad for p in full_fine_tuning(model).parameters())
