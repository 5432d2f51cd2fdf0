"""LoRA's fast layer against PEFT's, and its gradients against differences."""

import warnings

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.linear import LoraLinear, LoraProduct, frozen_copies
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.training import baselines
from tests.conftest import tiny, tiny_bert

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]


def plain_forward(layer, inputs):
    """PEFT's own forward of the same layer."""
    return lora.Linear.forward(layer, inputs)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_shift", [True, False])
def test_gradients_are_those_of_differences(with_bias, with_shift):
    torch.manual_seed(0)
    numbers = {"dtype": torch.float64, "requires_grad": True}
    inputs, first = torch.randn(2, 3, 5, **numbers), torch.randn(2, 5, **numbers)
    second, shift = torch.randn(4, 2, **numbers), torch.randn(2, **numbers) if with_shift else None
    weight = torch.randn(4, 5, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64) if with_bias else None

    def product(inputs, first, shift, second):
        return LoraProduct.apply(inputs, weight, bias, first, shift, second, 0.5, torch.float64)

    assert torch.autograd.gradcheck(product, (inputs, first, shift, second))
    expected = inputs @ weight.T + 0.5 * (
        (inputs @ first.T + (0 if shift is None else shift)) @ second.T
    )
    expected = expected if bias is None else expected + bias
    torch.testing.assert_close(product(inputs, first, shift, second), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("setting", [{}, {"output_bias": True}, {"adjuster": "none"}])
def test_under_autocast_a_model_computes_and_learns_as_with_pefts_layers(
    setting, device, monkeypatch
):
    torch.manual_seed(0)
    model = CoaLora.attach(tiny_bert(), rank=4, alpha=8, start="svd", **setting).to(device).eval()
    model.set_configuration([BlockwiseChoice(3, 8, "fp32", 16, 16)] * len(model.layer_names))
    if model.adjuster is not None:  # away from zero, where some gradients vanish
        for parameter in model.adjuster.parameters():
            nn.init.normal_(parameter, std=0.05)
    batch = {"input_ids": torch.randint(5, 60, (6, 9), device=device)}
    batch["labels"] = torch.tensor([0, 1] * 3, device=device)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def gradients():
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        return loss.item(), {name: p.grad.double().clone() for name, p in trained.items()}

    ours, gradient = gradients()
    monkeypatch.setattr(LoraLinear, "forward", plain_forward)
    theirs, expected = gradients()
    assert ours == pytest.approx(theirs, rel=5e-3)
    for name, wanted in expected.items():
        error = (gradient[name] - wanted).norm()
        assert error <= 0.05 * wanted.norm() + 1e-4, name


def test_correction_of_the_output_is_scaled_as_pefts_bias():
    base = nn.Sequential(nn.Linear(6, 5))
    config = LoraConfig(r=2, lora_alpha=8)
    layer = LoraLinear(base[0], "default", r=2, lora_alpha=8, config=config)
    layer.base_layer.requires_grad_(False)
    layer.lora_B["default"].bias = nn.Parameter(torch.randn(5), requires_grad=False)
    inputs = torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(inputs), plain_forward(layer, inputs)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
    layer.base_layer.bias = None
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(inputs), plain_forward(layer, inputs)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("change", ["no autocast", "merged", "disabled", "trained weight"])
def test_what_is_not_plain_goes_pefts_way(change, monkeypatch):
    model = baselines.lora(tiny("bert"), rank=2)
    layer = next(module for module in model.modules() if isinstance(module, LoraLinear))
    if change == "merged":
        layer.merge()
    if change == "disabled":
        layer.enable_adapters(False)
    if change == "trained weight":
        layer.base_layer.weight.requires_grad_(True)
    monkeypatch.setattr(LoraProduct, "apply", lambda *_: pytest.fail("not this way"))
    inputs = torch.randn(2, layer.in_features)
    with torch.autocast("cpu", torch.bfloat16, enabled=change != "no autocast"):
        ours, theirs = layer(inputs), plain_forward(layer, inputs)
    torch.testing.assert_close(ours, theirs)


def test_frozen_copies_are_others_while_they_last():
    model = baselines.lora(tiny("bert"), rank=2)
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    before = [(layer.base_layer.weight, layer.base_layer.bias) for layer in layers]
    with frozen_copies(layers):
        for layer, (weight, bias) in zip(layers, before, strict=True):
            assert layer.base_layer.weight is not weight
            torch.testing.assert_close(layer.base_layer.weight, weight)
            torch.testing.assert_close(layer.base_layer.bias, bias)
    after = [(layer.base_layer.weight, layer.base_layer.bias) for layer in layers]
    for pair, (weight, bias) in zip(after, before, strict=True):
        assert pair[0] is weight
        assert pair[1] is bias


def test_attaching_says_nothing_of_what_peft_and_transformers_call_things():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CoaLora.attach(tiny_bert(), rank=2, alpha=2)
    assert not [each.message for each in caught if each.category is FutureWarning]
