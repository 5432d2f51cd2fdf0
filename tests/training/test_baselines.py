import pytest
import torch
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.configuration import LayerConfig
from coalora_lib.quantization import quantize
from coalora_lib.training import TrainingPlan, evaluate, train
from coalora_lib.training.baselines import BitWidthLora, full_fine_tuning, lora, lq_lora
from tests.conftest import tiny

PLAN = TrainingPlan(steps=40, batch_size=8, configurations_per_step=1, learning_rate=1e-2)
CONFIGURATION = [LayerConfig(3, 8, "fp32", 16, 16)] * 12


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
    config = LayerConfig(2, 8, "fp32", 16, 16)
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
    with pytest.raises(ValueError, match="11 layer configurations for 12 layers"):
        lq_lora(tiny("bert"), CONFIGURATION[1:])
    with pytest.raises(ValueError, match=r"PeftModel.* has no configurations to train over"):
        train(lora(tiny("bert")), examples, [CONFIGURATION], PLAN)


def test_full_fine_tuning_trains_everything():
    model = tiny("bert")
    nn.Module.requires_grad_(model, False)
    assert all(p.requires_grad for p in full_fine_tuning(model).parameters())


def of_bits(bits):
    return [LayerConfig(bits, 8, "fp32", 16, 16)] * 12


def test_a_bit_widths_adapter_learns_from_its_configurations_alone(examples):
    model = BitWidthLora(tiny("bert"), rank=4, alpha=8)
    shared = CoaLora.attach(tiny("bert"), rank=4, alpha=8, configuration_aware=False)
    for each in (model, shared):
        each.set_configuration(of_bits(3))
    torch.testing.assert_close(logits(model), logits(shared))
    before = {name: p.detach().clone() for name, p in model.banks.named_parameters()}
    train(model, examples, [of_bits(3), of_bits(8)], PLAN)
    for name, bank in model.banks.named_parameters():
        moved = (bank != before[name].to(bank.device)).flatten(1).any(1)
        # 2, 3, 4 and 8 bits; what is never drawn has no gradient, and a decay too small to see
        decayed = (bank - before[name].to(bank.device)).abs().amax((1, 2)) / bank.abs().amax()
        assert moved[[1, 3]].all(), name
        assert (decayed[[0, 2]] < 0.01).all(), name


def test_bit_widths_store_one_adapter_each():
    model = BitWidthLora(tiny("bert"), rank=4, alpha=8)
    shared = CoaLora.attach(tiny("bert"), rank=4, alpha=8, configuration_aware=False)
    ours = sum(p.numel() for name, p in model.named_parameters() if name.startswith("banks"))
    theirs = sum(p.numel() for name, p in shared.named_parameters() if "lora_" in name)
    assert ours == 4 * theirs
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not any("lora_" in name for name in trained if not name.startswith("banks"))


def test_bit_widths_give_other_logits_only_for_other_bits():
    model = BitWidthLora(tiny("bert"), rank=4, alpha=8)
    for bank in model.banks["lora_B"]:
        nn.init.normal_(bank, std=0.1)
    layer = model.model.get_base_model().bert.encoder.layer[0].output.dense
    factors = []
    for configuration in (of_bits(3), of_bits(4), [LayerConfig(3, 2, "bf16", 64, 256)] * 12):
        model.set_configuration(configuration)
        logits(model)
        factors.append(layer.lora_B["default"].adjusted.detach().clone())
    assert torch.equal(factors[0], factors[2])
    assert not torch.equal(factors[0], factors[1])
