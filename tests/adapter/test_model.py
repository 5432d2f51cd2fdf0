import pytest
import torch
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.layers import WeightCache
from coalora_lib.adapter.model import adaptable_layers
from coalora_lib.configuration import LayerConfig, random_configuration
from coalora_lib.quantization import quantize

COARSE = LayerConfig(2, 2, "bf16", 64, 256)
FINE = LayerConfig(8, 8, "fp32", 16, 16)


def batch():
    return {"input_ids": torch.arange(6, 26).reshape(2, 10)}


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(**batch()).logits


def fill_lora(model):
    """Give the B factors values, so that the adapters do something."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)


def test_all_linear_layers_in_blocks_and_no_others(base_model):
    names = adaptable_layers(base_model)
    assert len(names) == 12
    assert all(".layer." in name for name in names)


def test_attaching_changes_no_output(base_model):
    before = base_model.eval()(**batch()).logits
    model = CoaLora.attach(base_model, rank=4)
    torch.testing.assert_close(logits(model), before, atol=1e-12, rtol=0)
    assert model.bits is None


def test_weights_are_the_quantizers_and_biases_stay(model):
    inner = model.model.get_base_model()
    pretrained = {n: inner.get_submodule(n).base_layer for n in model.layer_names}
    weights = {n: layer.weight.clone() for n, layer in pretrained.items()}
    biases = {n: layer.bias.clone() for n, layer in pretrained.items()}
    configuration = random_configuration(12, torch.Generator().manual_seed(0))
    model.set_configuration(configuration)
    for name, config in zip(model.layer_names, configuration, strict=True):
        layer = inner.get_submodule(name).base_layer
        assert torch.equal(layer.weight, quantize(weights[name], config).dequantize())
        assert torch.equal(layer.bias, biases[name])
        assert layer.bias.abs().max() > 0


def test_forward_is_the_equation(model):
    fill_lora(model)
    configuration = [COARSE] * 12
    model.set_configuration(configuration)
    logits(model)
    adjustments = model.adjustments(configuration)
    for name, adjustment in zip(model.layer_names, adjustments, strict=True):
        layer = model.model.get_base_model().get_submodule(name)
        up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        inputs = torch.randn(3, down.shape[1], dtype=torch.float64)
        correction = up @ (torch.eye(4) + adjustment) @ down
        expected = inputs @ (layer.base_layer.weight + 2.0 * correction).T + layer.base_layer.bias
        torch.testing.assert_close(layer(inputs), expected, atol=1e-10, rtol=0)


def test_zero_adjustment_is_plain_lora(model, base_model):
    shared = CoaLora.attach(base_model, rank=4, alpha=8, configuration_aware=False)
    nn.init.zeros_(model.hypernetwork.output.weight)
    shared.model.load_state_dict(model.model.state_dict())
    for each in (model, shared):
        torch.manual_seed(3)
        fill_lora(each)
        each.set_configuration([COARSE] * 12)
    assert torch.equal(logits(model), logits(shared))


def test_the_configuration_reaches_the_output_through_u(model):
    fill_lora(model)
    nn.init.normal_(model.hypernetwork.output.weight, std=0.5)
    model.set_configuration([FINE] * 12)
    fine = logits(model)
    with torch.no_grad():
        model.configuration = [COARSE] * 12  # only U changes: the weights stay the fine ones
        assert not torch.allclose(logits(model), fine)


def test_switching_back_gives_the_same_output(model):
    fill_lora(model)
    model.set_configuration([FINE] * 12)
    first = logits(model)
    model.set_configuration([COARSE] * 12)
    assert not torch.allclose(logits(model), first)
    model.set_configuration([FINE] * 12)
    assert torch.equal(logits(model), first)


def test_a_budget_is_allocated(model):
    model.set_configuration(3.0)
    assert 2.5 < model.bits <= 3.0


def test_gradients_reach_factors_hypernetwork_and_head_and_nothing_else(model):
    fill_lora(model)
    model.set_configuration([COARSE] * 12)
    model.train()
    model(**batch(), labels=torch.tensor([0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        trained = any(part in name for part in ("lora_", "hypernetwork", "modules_to_save"))
        assert (parameter.grad is not None) == trained, name


@pytest.mark.parametrize("wrong", [[COARSE] * 11, []], ids=["eleven", "none"])
def test_a_configuration_of_another_model_is_refused_and_nothing_changes(model, wrong):
    model.set_configuration([FINE] * 12)
    before = logits(model)
    with pytest.raises(ValueError, match=f"{len(wrong)} layer configurations for 12 layers"):
        model.set_configuration(wrong)
    with pytest.raises(ValueError, match="not feasible"):
        model.set_configuration(1.5)
    assert torch.equal(logits(model), before)


def test_a_model_without_blocks_is_refused(base_model):
    base_model.bert.encoder.layer = nn.ModuleList()
    with pytest.raises(ValueError, match="no linear layer in numbered blocks"):
        CoaLora.attach(base_model)


def test_shared_lora_has_no_adjustments(base_model):
    with pytest.raises(ValueError, match="configuration_aware=False"):
        CoaLora.attach(base_model, configuration_aware=False).adjustments([COARSE] * 12)


def test_casting_the_model_casts_what_the_cache_hands_out(model):
    model.set_configuration([FINE] * 12)
    model.float()
    model.set_configuration([COARSE] * 12)
    assert logits(model).dtype == torch.float32


def test_cache_keeps_within_its_limit_and_returns_the_same_object():
    weights = {"a": torch.randn(8, 8), "b": torch.randn(8, 8)}
    cache = WeightCache(weights, limit=2 * 8 * 8 * 4)
    first = cache.get("a", FINE)
    assert cache.get("a", FINE) is first
    cache.get("b", FINE)
    cache.get("a", FINE)
    cache.get("b", COARSE)  # drops ("b", FINE), the least recently used
    assert cache.held <= cache.limit
    assert cache.get("a", FINE) is first
