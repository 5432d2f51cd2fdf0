"""Gradient checkpointing recomputes each block as it was in its own forward."""

import copy

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, ViTConfig, ViTForImageClassification

from coalora_lib.adapter import CoaLora
from coalora_lib.quantization import BlockwiseChoice
from tests.adapter.test_model import fill_lora
from tests.conftest import some_means, tiny

COARSE = BlockwiseChoice(2, 2, "bf16", 64, 256)
FINE = BlockwiseChoice(8, 8, "fp32", 16, 16)
IDS = torch.arange(6, 26).reshape(2, 10)

each_kind = pytest.mark.parametrize("kind", ["bert", "llama"])
each_way = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])


def attached(kind, adjuster="hypernetwork", **options):
    base = tiny(kind).double()
    if adjuster == "hypernetwork":
        options = {"output_bias": True} | options
    means = {name: mean.double() for name, mean in some_means(base).items()}
    options = {"bias_correction": True, "mean_inputs": means} | options
    model = CoaLora.attach(base, rank=4, adjuster=adjuster, **options)
    fill_lora(model)
    for name, parameter in model.adjuster.named_parameters():
        if name.startswith(("output", "l1")):
            nn.init.normal_(parameter, std=0.3)
    return model.train()


def loss(model, choice):
    model.set_configuration([choice] * len(model.layer_names))
    labels = IDS if "CausalLM" in type(model.get_base_model()).__name__ else torch.tensor([0, 1])
    return model(input_ids=IDS, labels=labels).loss


def one(model):
    loss(model, COARSE).backward()


def sum_of_two(model):
    (loss(model, COARSE) + 2 * loss(model, FINE)).backward()


def sum_in_other_order_of_blocks(model):
    first, second, third = loss(model, FINE), loss(model, COARSE), loss(model, FINE)
    (third + second).backward()
    first.backward()


def after_a_switch(model):
    first = loss(model, COARSE)
    model.set_configuration([FINE] * len(model.layer_names))
    first.backward()


def after_another_forward(model):
    first = loss(model, COARSE)
    with torch.no_grad():
        loss(model.eval(), FINE)
    model.train()
    first.backward()


def after_no_configuration(model):
    first = loss(model, COARSE)
    model.set_configuration(None)
    first.backward()


def without_a_configuration(model):
    model(input_ids=IDS).logits.pow(2).sum().backward()


BACKWARDS = [
    one,
    sum_of_two,
    sum_in_other_order_of_blocks,
    after_a_switch,
    after_another_forward,
    after_no_configuration,
    without_a_configuration,
]


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def same_gradients(model, plain, backward):
    for each in (plain, model):
        each.zero_grad()
        torch.manual_seed(0)
        backward(each)
    expected, found = gradients(plain), gradients(model)
    assert expected.keys() == found.keys()
    assert any(gradient is not None for gradient in expected.values())
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None, name
            continue
        torch.testing.assert_close(found[name], gradient, atol=1e-9, rtol=1e-6, msg=name)
    return True


def checkpointed(kind, reentrant, **options):
    plain = attached(kind, **options)
    model = copy.deepcopy(plain)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model, plain


@each_kind
@each_way
@pytest.mark.parametrize("backward", BACKWARDS, ids=lambda each: each.__name__)
def test_gradients_are_those_without_checkpointing(kind, reentrant, backward):
    model, plain = checkpointed(kind, reentrant)
    assert same_gradients(model, plain, backward)


@each_kind
@each_way
@pytest.mark.parametrize("adjuster", ["bank", "none"])
def test_gradients_of_other_adjusters(kind, reentrant, adjuster):
    model, plain = checkpointed(kind, reentrant, adjuster=adjuster)
    assert same_gradients(model, plain, one)
    assert same_gradients(model, plain, sum_in_other_order_of_blocks)


def through_the_inner_model(model, options):
    model.get_base_model().gradient_checkpointing_enable(options)


def through_peft(model, options):
    model.model.gradient_checkpointing_enable(options)


def through_the_backbone(model, options):
    model.get_base_model().base_model.gradient_checkpointing_enable(options)


def by_the_newer_name(model, options):
    model.activation_checkpointing_enable(options)


def twice(model, options):
    model.gradient_checkpointing_enable({"use_reentrant": not options["use_reentrant"]})
    model.gradient_checkpointing_disable()
    model.gradient_checkpointing_enable(options)


def on_the_copied(model, options):
    model.gradient_checkpointing_enable(options)
    loss(model, FINE).backward()
    return copy.deepcopy(model)


@each_way
@pytest.mark.parametrize(
    "enable",
    [
        through_the_inner_model,
        through_peft,
        through_the_backbone,
        by_the_newer_name,
        twice,
        on_the_copied,
    ],
    ids=lambda each: each.__name__,
)
def test_every_way_to_enable_it_does_the_same(reentrant, enable):
    plain = attached("llama")
    model = copy.deepcopy(plain)
    model = enable(model, {"use_reentrant": reentrant}) or model
    assert same_gradients(model, plain, sum_of_two)


@each_way
def test_enabled_before_it_is_attached(reentrant):
    base = tiny("bert").double()
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    plain = attached("bert", "none", bias_correction=False, mean_inputs=None)
    model = CoaLora.attach(base, rank=4, adjuster="none").train()
    model.load_state_dict(plain.state_dict())
    assert same_gradients(model, plain, sum_of_two)


@each_kind
def test_disabled_it_computes_each_block_once(kind):
    model, _ = checkpointed(kind, True)
    calls = []
    linear = next(iter(model.layers.quantized.values()))
    linear.register_forward_hook(lambda *_: calls.append(1))
    one(model)
    assert len(calls) == 2
    model.gradient_checkpointing_disable()
    one(model)
    assert len(calls) == 3


@each_kind
@each_way
def test_dropout_is_the_same_in_the_recomputation(kind, reentrant):
    model, plain = checkpointed(kind, reentrant)
    for each in (model, plain):
        for module in each.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3
    assert same_gradients(model, plain, after_a_switch)


@each_way
def test_inputs_that_are_no_tokens(reentrant):
    """Without embeddings nothing before the first block needs gradients; its LoRA does."""
    torch.manual_seed(0)
    base = ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            image_size=8,
            patch_size=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).double()
    plain = CoaLora.attach(base, rank=4).train()
    fill_lora(plain)
    model = copy.deepcopy(plain)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    pixels = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def backward(each):
        losses = []
        for choice in (COARSE, FINE):
            each.set_configuration([choice] * len(each.layer_names))
            losses.append(each(pixel_values=pixels, labels=torch.tensor([0, 1])).loss)
        sum(losses).backward()

    assert same_gradients(model, plain, backward)


@each_way
def test_an_encoder_and_a_decoder(reentrant):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    plain = CoaLora.attach(T5ForConditionalGeneration(config).double(), rank=4).train()
    fill_lora(plain)
    nn.init.normal_(plain.adjuster.output.weight, std=0.3)
    model = copy.deepcopy(plain)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})

    def backward(each):
        losses = []
        for choice in (COARSE, FINE):
            each.set_configuration([choice] * len(each.layer_names))
            losses.append(each(input_ids=IDS, labels=IDS).loss)
        sum(losses).backward()

    assert same_gradients(model, plain, backward)


@each_way
def test_gradients_of_inputs_while_the_adapter_is_off(reentrant):
    model, plain = checkpointed("llama", reentrant)
    found = []
    for each in (plain, model):
        inputs = each.get_input_embeddings()(IDS).detach().requires_grad_()
        each.set_configuration([COARSE] * 14)
        with each.disable_adapter():
            logits = each(inputs_embeds=inputs).logits
        each.set_configuration([FINE] * 14)
        logits.pow(2).sum().backward()
        found.append(inputs.grad)
    torch.testing.assert_close(found[1], found[0])


@each_way
def test_a_weight_overwritten_before_its_recomputation_is_refused(reentrant):
    model, _ = checkpointed("bert", reentrant)
    model.set_configuration([COARSE] * 12)
    with model.layers.static_memory():
        first = loss(model, COARSE)
        model.set_configuration([FINE] * 12)
        with pytest.raises(RuntimeError, match="a backward comes before the next set_config"):
            first.backward()


@each_kind
@each_way
def test_training_ends_with_the_same_weights(kind, reentrant):
    """Several steps of an optimizer, a configuration each."""
    model, plain = checkpointed(kind, reentrant)
    for each in (model, plain):
        optimizer = torch.optim.AdamW([p for p in each.parameters() if p.requires_grad], lr=1e-3)
        for choice in (COARSE, FINE, COARSE):
            optimizer.zero_grad()
            loss(each, choice).backward()
            optimizer.step()
    for (name, one_of), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one_of, other, msg=name)
