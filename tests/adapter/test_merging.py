"""One configuration as a plain transformers model."""

import pytest
import torch
from torch import nn

from coalora_lib.adapter import CoaLora
from tests.adapter.test_citizen import (
    COARSE,
    FINE,
    IDS,
    attached,
    corrected,
    each_kind,
    logits,
    mixed,
)
from tests.conftest import TINY, tiny


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("adjuster", ["hypernetwork", "bank", "none"])
def test_merged_is_a_plain_model_with_the_same_outputs(kind, adjuster, tmp_path):
    model = attached(kind, adjuster=adjuster)
    model.set_configuration(mixed(model))
    before = logits(model)
    plain = model.merge()
    torch.testing.assert_close(logits(plain), before, atol=1e-5, rtol=1e-5)
    assert plain.state_dict().keys() == tiny(kind).state_dict().keys()
    sources = {type(module).__module__.partition(".")[0] for module in plain.modules()}
    assert sources <= {"torch", "transformers"}
    assert not hasattr(plain, "peft_config")
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(plain))
    for parameter in plain.parameters():  # in memory of its own
        assert parameter.requires_grad
        nn.init.zeros_(parameter)
    assert torch.equal(logits(model), before)
    model.set_configuration(mixed(model))
    assert torch.equal(logits(model), before)


@each_kind
def test_merged_under_another_configuration_leaves_the_current_one(kind):
    model = attached(kind)
    model.set_configuration([FINE] * len(model.layer_names))
    before = logits(model)
    plain = model.merge([COARSE] * len(model.layer_names))
    assert torch.equal(logits(model), before)
    assert model.configuration == [FINE] * len(model.layer_names)
    model.set_configuration([COARSE] * len(model.layer_names))
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-5)


def test_there_is_nothing_to_merge_without_a_configuration():
    with pytest.raises(ValueError, match="no configuration is set or given"):
        attached("bert").merge()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_merged_biases_hold_corrections_and_shifts(kind, tmp_path):
    """LLaMA's configuration can give it biases; the correction of the others joins theirs."""
    model = corrected(kind)
    model.set_configuration(mixed(model))
    plain = model.merge()
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-5)
    assert not getattr(model.config, "mlp_bias", False)
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(plain))


def test_a_correction_that_no_bias_can_hold_is_refused_by_name():
    model = corrected("qwen2")
    model.set_configuration(mixed(model))
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.o_proj has no bias, and a Qwen2"):
        model.merge()


def test_merged_with_a_frozen_low_rank_term():
    model = attached("gpt2", start="residual")
    model.set_configuration(mixed(model))
    torch.testing.assert_close(logits(model.merge()), logits(model), atol=1e-5, rtol=1e-5)


def test_merged_from_a_16_bit_model_is_of_its_dtype(tmp_path):
    model = CoaLora.attach(tiny("bert").bfloat16(), rank=4)
    model.set_configuration(mixed(model))
    plain = model.eval().merge()
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert torch.equal(logits(again), logits(plain))


def test_merged_after_gradient_checkpointing_and_inference_mode_can_be_trained():
    model = attached("bert")
    model.gradient_checkpointing_enable()
    with torch.inference_mode():
        model.set_configuration(mixed(model))
        plain = model.merge()
    plain.train()(IDS, labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())
    # And attached to again.
    again = CoaLora.attach(plain, rank=4).train()
    again(IDS, labels=torch.tensor([0, 1])).loss.backward()


def test_merging_draws_no_random_numbers():
    model = attached("gpt2")
    model.set_configuration(mixed(model))
    before = torch.get_rng_state()
    model.merge()
    assert torch.equal(torch.get_rng_state(), before)
