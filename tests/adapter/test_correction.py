"""Bias correction: what quantization takes from a layer's mean output comes back."""

import pytest
import torch

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.training import evaluate, mean_inputs
from tests.conftest import some_means, tiny, tiny_bert

COARSE = [BlockwiseChoice(2, 2, "bf16", 64, 256)] * 12
FINE = [BlockwiseChoice(8, 8, "fp32", 16, 16)] * 12
QUERY = "bert.encoder.layer.0.attention.self.query"


def corrected(examples, **options):
    base = tiny_bert()
    means = mean_inputs(base, adaptable_layers(base), examples, batch_size=7)
    return CoaLora.attach(base, rank=4, alpha=8, mean_inputs=means, bias_correction=True, **options)


def mean_output(base, layer, examples):
    """Over every real token, one example at a time."""
    outputs = []
    handle = base.get_submodule(layer).register_forward_hook(lambda *a: outputs.append(a[-1][0]))
    with torch.no_grad():
        for example in examples:
            base(input_ids=example["input_ids"][None])
    handle.remove()
    return torch.cat(outputs).mean(0)


def test_mean_inputs_leave_padding_out(examples):
    base = tiny_bert()
    base.eval()
    entered = []
    hook = base.get_submodule(QUERY).register_forward_pre_hook(lambda _, x: entered.append(x[0][0]))
    with torch.no_grad():
        for example in examples:
            base(input_ids=example["input_ids"][None])
    hook.remove()
    found = mean_inputs(base, [QUERY], examples, batch_size=7)[QUERY]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.cat(entered).mean(0))


def test_without_examples_there_is_no_mean():
    with pytest.raises(ValueError, match="no examples"):
        mean_inputs(tiny_bert(), [QUERY], [])


def test_the_mean_output_of_a_layer_is_what_it_was(examples):
    base = tiny_bert()
    base.eval()
    whole = mean_output(base, QUERY, examples)
    model = corrected(examples)
    model.eval()
    model.set_configuration(COARSE)
    inner = model.model.get_base_model()
    torch.testing.assert_close(mean_output(inner, QUERY, examples), whole)
    for layer in model.layers.quantized.values():
        layer.mean_input = None
        layer.switch(layer.choice, *layer.under(layer.choice))
    assert (mean_output(inner, QUERY, examples) - whole).abs().max() > 1e-3


def test_the_correction_follows_the_configuration_in_place_too(examples):
    model = corrected(examples)
    swapped = [evaluate(model, examples, each).loss for each in (COARSE, FINE)]
    with model.layers.static_memory():
        assert [evaluate(model, examples, each).loss for each in (COARSE, FINE)] == swapped
    assert [evaluate(model, examples, each).loss for each in (COARSE, FINE)] == swapped


def test_it_is_saved_and_read_back(examples, tmp_path):
    model = corrected(examples, output_bias=True)
    before = evaluate(model, examples, COARSE).loss
    model.save_pretrained(tmp_path / "saved")
    again = CoaLora.from_pretrained(tmp_path / "saved", tiny_bert())
    assert evaluate(again, examples, COARSE).loss == before


def test_means_that_are_missing_or_do_not_fit_are_refused():
    means = some_means(tiny("bert"))
    with pytest.raises(ValueError, match="bias_correction=True needs mean_inputs"):
        CoaLora.attach(tiny("bert"), bias_correction=True)
    with pytest.raises(ValueError, match="bias_correction=False has no use for mean_inputs"):
        CoaLora.attach(tiny("bert"), mean_inputs=means)
    means[QUERY] = means[QUERY][1:]
    with pytest.raises(ValueError, match=rf"mean_inputs\['{QUERY}'\] must be \("):
        CoaLora.attach(tiny("bert"), bias_correction=True, mean_inputs=means)
