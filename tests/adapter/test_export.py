"""An exported adapter is plain PEFT: these tests load it without the library."""

import json

import pytest
import torch
from peft import PeftModel
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.quantization import load_quantized, quantize
from coalora_lib.spaces import random_configuration
from tests.conftest import some_means, tiny

#: Float32 logits of about 1 through two blocks.
TOLERANCE = {"atol": 1e-5, "rtol": 0}


def attached(kind, **options):
    """A model as after training: every trained part filled with something."""
    base = tiny(kind)
    if options.get("bias_correction"):
        options["mean_inputs"] = some_means(base)
    model = CoaLora.attach(base, rank=4, alpha=8, **options)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def batch():
    return {"input_ids": torch.arange(6, 26).reshape(2, 10)}


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(**batch()).logits


def quantized_base(kind, configuration, names):
    """What someone without our adapter has: the model with quantized weights in it."""
    base = tiny(kind)
    for name, config in zip(names, configuration, strict=True):
        weight = base.get_submodule(name).weight
        weight.data = quantize(weight.data, config).dequantize()
    return base


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "qwen2", "gpt2", "opt"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start": "residual", "frozen_rank": 3},
        {"output_bias": True, "learned_scale": True, "error_features": True},
        {"adjuster": "none"},
        {"bias_correction": True, "output_bias": True},
    ],
    ids=["plain", "residual", "options", "shared", "correction"],
)
def test_plain_peft_gives_the_same_logits(tmp_path, kind, options):
    model = attached(kind, **options)
    generator = torch.Generator().manual_seed(0)
    layers = len(model.layer_names)
    allocated = [model.resolve(budget) for budget in (2.5, 4.0)]
    for configuration in allocated + [random_configuration(layers, generator) for _ in range(8)]:
        model.set_configuration(configuration)
        expected = logits(model)
        model.export_peft_adapter(tmp_path / "adapter")  # replaces the one before
        base = quantized_base(kind, configuration, model.layer_names)
        plain = PeftModel.from_pretrained(base, tmp_path / "adapter")
        assert type(plain).__module__.startswith("peft")
        torch.testing.assert_close(logits(plain), expected, **TOLERANCE)


def test_an_export_can_name_its_configuration_and_leaves_the_model_alone(tmp_path):
    model = attached("bert")
    model.set_configuration(4.0)
    before = logits(model)
    model.export_peft_adapter(tmp_path / "low", 2.5)
    assert torch.equal(logits(model), before)
    configuration = model.resolve(2.5)
    plain = PeftModel.from_pretrained(
        quantized_base("bert", configuration, model.layer_names), tmp_path / "low"
    )
    model.set_configuration(configuration)
    torch.testing.assert_close(logits(plain), logits(model), **TOLERANCE)


def test_packed_weights_beside_the_adapter_are_the_configurations(tmp_path):
    model = attached("llama")
    model.export_peft_adapter(tmp_path / "adapter", 3.0, weights="packed")
    packed = load_quantized(tmp_path / "adapter" / "quantized.safetensors")
    assert list(packed) == model.layer_names
    assert [tensor.choice for tensor in packed.values()] == model.resolve(3.0)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_a_base_model_beside_the_adapter_needs_transformers_and_peft_only(tmp_path, kind):
    model = attached(kind, start="residual")
    model.set_configuration(3.0)
    model.export_peft_adapter(tmp_path / "adapter", weights="base_model")
    base = type(tiny(kind)).from_pretrained(tmp_path / "adapter" / "base_model")
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), logits(model), **TOLERANCE)


def test_the_task_is_named_for_pefts_auto_classes(tmp_path):
    for kind, task in (("bert", "SEQ_CLS"), ("llama", "CAUSAL_LM")):
        attached(kind).export_peft_adapter(tmp_path / kind, 3.0)
        about = json.loads((tmp_path / kind / "adapter_config.json").read_text())
        assert about["task_type"] == task
        assert about["r"] == 4
        assert about["lora_alpha"] == 8


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
    model = attached("bert")
    with pytest.raises(ValueError, match="nothing can be exported"):
        model.export_peft_adapter(tmp_path / "a")
    with pytest.raises(ValueError, match="weights='onnx' is not known"):
        model.export_peft_adapter(tmp_path / "a", 3.0, weights="onnx")
    with pytest.raises(ValueError, match="not feasible"):
        model.export_peft_adapter(tmp_path / "a", 1.0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"has no coalora_export\.json"):
        model.export_peft_adapter(tmp_path / "mine", 3.0)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
