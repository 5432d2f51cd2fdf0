"""Low-rank terms made from data: for each layer by itself, and in the layers' order."""

import pytest
import torch
from peft import PeftModel

from coalora_lib.adapter import CoaLora, adaptable_layers, fit_in_order
from coalora_lib.calibration import reduced_rank_regression, ridge_factor
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.training import input_moments
from coalora_lib.training.batches import collate
from tests.conftest import tiny, tiny_bert

COARSE = BlockwiseChoice(2, 2, "bf16", 64, 256)
FINE = BlockwiseChoice(8, 8, "fp32", 16, 16)
QUERY = "bert.encoder.layer.0.attention.self.query"
VALUE = "bert.encoder.layer.0.attention.self.value"


def coarse(model):
    return [COARSE] * len(model.layer_names)


def entered(base, layer, examples):
    """The inputs of a layer at every real token, one example at a time."""
    found = []
    handle = base.get_submodule(layer).register_forward_pre_hook(lambda _, x: found.append(x[0][0]))
    base.eval()
    with torch.no_grad():
        for example in examples:
            base(input_ids=example["input_ids"][None])
    handle.remove()
    return torch.cat(found)


def calibrated(examples, rank=4, **options):
    base = tiny_bert()
    moments = input_moments(base, adaptable_layers(base), examples, batch_size=7)
    return CoaLora.attach(
        base, rank, 8, "calibrated", bias_correction=True, mean_inputs=moments.means,
        second_moments=moments.seconds, **options,
    )  # fmt: skip


def outputs(model, examples):
    model.eval()
    with torch.no_grad():
        return model(**collate(examples, 0)).logits


def test_moments_leave_padding_out_and_are_shared(examples):
    base = tiny_bert()
    x = entered(base, QUERY, examples)
    found = input_moments(base, [QUERY, VALUE], examples, batch_size=7)
    torch.testing.assert_close(found.means[QUERY], x.mean(0))
    torch.testing.assert_close(found.seconds[QUERY], x.T @ x / len(x))
    assert found.seconds[VALUE] is found.seconds[QUERY]


def test_each_layers_output_error_is_the_least_of_its_rank(examples):
    model = calibrated(examples)
    layer = model.layers.quantized[QUERY]
    x = entered(tiny_bert(), QUERY, examples)
    weight, correction = layer.under(COARSE)
    whole, plain = layer.pretrained, layer.plain(COARSE).restore()
    missing = (x @ (whole - plain).T) - (x @ (whole - plain).T).mean(0)
    found = x @ (whole - weight).T - correction
    values = torch.linalg.svdvals(missing)  # what is best for the output, of rank 4
    assert found.square().sum().item() == pytest.approx(values[4:].square().sum().item(), rel=1e-5)


def test_without_moments_or_with_others_it_is_refused(examples):
    base = tiny_bert()
    with pytest.raises(ValueError, match="start='calibrated' needs second_moments"):
        CoaLora.attach(base, 4, 8, "calibrated")
    moments = input_moments(base, adaptable_layers(base), examples)
    with pytest.raises(ValueError, match="start='zero' has no use for second_moments"):
        CoaLora.attach(base, 4, 8, second_moments=moments.seconds)
    moments.seconds[VALUE] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=rf"second_moments\['{VALUE}'\] must be \(32, 32\)"):
        CoaLora.attach(base, 4, 8, "calibrated", second_moments=moments.seconds)


def test_it_is_saved_and_read_back(examples, tmp_path):
    model = calibrated(examples)
    model.set_configuration(2.5)
    expected = outputs(model, examples)
    again = CoaLora.from_pretrained(model.save_pretrained(tmp_path / "saved"), tiny_bert())
    assert torch.equal(outputs(again, examples), expected)
    for name, second in model.layers.second_moments.items():
        assert torch.equal(again.layers.second_moments[name], second)


@pytest.mark.parametrize("way", ["by itself", "in order"])
def test_plain_peft_gives_the_same_outputs(examples, tmp_path, way):
    if way == "by itself":
        model = calibrated(examples)
    else:
        model = CoaLora.attach(tiny_bert(), rank=4, alpha=8)
        fit_in_order(model, coarse(model), collate(examples, 0), rank=3)
    model.set_configuration(coarse(model))
    torch.nn.init.normal_(model.layers.factors()[0].l1, std=0.1)
    expected = outputs(model, examples)
    model.export_peft_adapter(tmp_path / "adapter", weights="base_model")
    base = tiny_bert()
    for name, packed in model.layers.packed(coarse(model)).items():
        base.get_submodule(name).weight.data = packed.quantized.dequantize().double()
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").double()
    torch.testing.assert_close(outputs(plain, examples), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs(model.merge(), examples), expected)


def test_in_order_is_a_loop_over_layers(examples):
    """The reference: for each layer in turn, both models run as they are so far."""
    model = CoaLora.attach(tiny_bert(), rank=4, alpha=8)
    batch, configuration = collate(examples, 0), coarse(model)
    fit_in_order(model, configuration, batch, rank=2)
    fitted = model.layers.fitted[tuple(configuration)]
    base = tiny_bert().eval()
    whole = tiny_bert().eval()
    for name, found in zip(model.layer_names, fitted, strict=True):
        layer, target = base.get_submodule(name), whole.get_submodule(name)
        layer.weight.data = model.layers.quantized[name].plain(COARSE).restore()
        x, e = entered(base, name, examples), entered(whole, name, examples) @ target.weight.T
        e = e - x @ layer.weight.T  # the biases are the same
        centred, missing = x - x.mean(0), e - e.mean(0)
        factor = ridge_factor(centred.T @ centred / len(x))
        left, right = reduced_rank_regression(missing.T @ centred / len(x), factor, 2)
        kept = left @ right
        torch.testing.assert_close(found.left @ found.right, kept, atol=1e-6, rtol=1e-4)
        layer.weight.data = layer.weight.data + kept
        layer.bias.data = layer.bias.data + e.mean(0) - kept @ x.mean(0)
    model.set_configuration(configuration)
    torch.testing.assert_close(outputs(model, examples), outputs(base, examples), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "qwen2", "gpt2", "opt"])
def test_it_brings_every_architecture_closer(kind):
    batch = {
        "input_ids": torch.randint(3, 60, (40, 12), generator=torch.Generator().manual_seed(0))
    }
    whole = tiny(kind).eval()
    with torch.no_grad():
        expected = whole(**batch).logits
    model = CoaLora.attach(tiny(kind), rank=4, alpha=8).eval()
    model.set_configuration(coarse(model))
    with torch.no_grad():
        before = (model(**batch).logits - expected).square().mean()
        fit_in_order(model, coarse(model), batch, rank=8)
        after = (model(**batch).logits - expected).square().mean()
    assert after < 0.5 * before


def test_the_model_is_left_as_it_was_but_for_that_configuration(examples):
    model = CoaLora.attach(tiny_bert(), rank=4, alpha=8).train()
    model.set_configuration(3.0)
    before = outputs(model, examples)
    model.train()
    fit_in_order(model, 2.5, collate(examples, 0))
    assert model.training
    assert torch.equal(outputs(model, examples), before)
    with pytest.raises(ValueError, match="is not feasible"):
        fit_in_order(model, 1.0, collate(examples, 0))
    assert all(not p._forward_hooks for p in model.modules())


def test_beside_the_adapter_it_fits_what_that_leaves(examples):
    model = CoaLora.attach(tiny_bert(), rank=4, alpha=8).eval()
    configuration = coarse(model)
    expected = outputs(tiny_bert(), examples)
    for factors in model.layers.factors():
        torch.nn.init.normal_(factors.l1, std=0.05)
    model.set_configuration(configuration)
    left = []
    for beside in (False, True):
        fit_in_order(model, configuration, collate(examples, 0), 8, beside_adapter=beside)
        left.append((outputs(model, examples) - expected).square().mean())
    assert left[1] < left[0]


def test_a_model_that_sees_two_sequences_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    base = T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_ff=48, d_kv=8, num_layers=1, num_heads=2)
    )
    model = CoaLora.attach(base, rank=4)
    batch = {"input_ids": torch.ones(2, 5).long(), "decoder_input_ids": torch.ones(2, 3).long()}
    with pytest.raises(ValueError, match="is given 6 tokens, and the texts have 10"):
        fit_in_order(model, 3.0, batch)
    assert model.configuration is None


def test_a_fit_that_fails_leaves_the_one_before(examples):
    model = CoaLora.attach(tiny_bert(), rank=4, alpha=8)
    fit_in_order(model, coarse(model), collate(examples, 0))
    before = model.layers.fitted[tuple(coarse(model))]
    wrong = {"inputs_embeds": torch.zeros(1, 4, 32), "input_ids": torch.ones(1, 4).long()}
    with pytest.raises(ValueError, match="inputs_embeds"):
        fit_in_order(model, coarse(model), wrong)
    assert model.layers.fitted[tuple(coarse(model))] is before
    assert model.configuration is None
