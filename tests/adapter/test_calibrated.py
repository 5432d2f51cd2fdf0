"""Low-rank terms made from data, for each layer by itself."""

import pytest
import torch
from peft import PeftModel

from coalora_lib.adapter import CoaLora, adaptable_layers
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.training import input_moments
from coalora_lib.training.batches import collate
from tests.conftest import tiny_bert

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


def test_plain_peft_gives_the_same_outputs(examples, tmp_path):
    model = calibrated(examples)
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
