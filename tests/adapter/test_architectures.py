"""The whole way, from attaching to plain PEFT, on many architectures."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.kinds import objective_of
from coalora_lib.quantization import quantize
from coalora_lib.spaces import random_configuration
from coalora_lib.training import TrainingPlan, evaluate, train
from coalora_lib.training.evaluation import transformers_model
from tests.adapter.architectures import ARCHITECTURES

#: Float32 outputs of about 1 through two blocks.
TOLERANCE = {"atol": 1e-5, "rtol": 0}


def first_output(model, batch):
    """The first tensor of a model's output for what it measures on."""
    given = {n: t for n, t in batch.items() if n != "labels" and not n.endswith("positions")}
    if transformers_model(model).config.is_encoder_decoder:
        given = given | {"labels": batch["labels"]} if batch["labels"].ndim == 2 else given
    model.eval()
    with torch.no_grad():
        output = model(**given)
    named = (output.get(n) for n in ("logits", "start_logits", "logits_per_image"))
    return next((each for each in named if each is not None), output[0])


def own_loss(output, batch):
    """For CLIP, which has no labels."""
    return -output.logits_per_image.log_softmax(-1).diagonal().mean()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_whole_way(name, tmp_path, record):
    made = ARCHITECTURES[name]
    torch.manual_seed(0)
    batch = made.batch()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "only .* % of the weights in blocks")
        model = CoaLora.attach(made.make(), rank=4, alpha=8)
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.1)

    generator = torch.Generator().manual_seed(0)
    drawn = [random_configuration(model.shapes, generator) for _ in range(2)]
    outputs = []
    for configuration in drawn:
        model.set_configuration(configuration)
        outputs.append(first_output(model, batch))
    assert not torch.equal(*outputs)
    model.set_configuration(drawn[0])
    assert torch.equal(first_output(model, batch), outputs[0])

    examples = [{n: t[i] for n, t in batch.items()} for i in (0, 1)] * 4
    own = {"loss": own_loss} if "labels" not in batch and "start_positions" not in batch else {}
    before = evaluate(model, examples, drawn[0], 2, **own)
    plan = TrainingPlan(steps=12, batch_size=2, learning_rate=1e-2, configurations_per_step=1)
    train(model, examples, drawn[:1], plan, **own)
    after = evaluate(model, examples, drawn[0], 2, **own)
    assert after.loss < before.loss
    kind = objective_of(transformers_model(model), **own)
    assert kind.primary in after.metrics

    model.set_configuration(drawn[1])
    expected = first_output(model, batch)
    model.export_peft_adapter(tmp_path / "adapter")
    base = made.make()
    for layer, choice in zip(model.layer_names, drawn[1], strict=True):
        weight = base.get_submodule(layer).weight
        weight.data = quantize(weight.data, choice).dequantize()
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter")
    theirs = first_output(plain, batch)
    torch.testing.assert_close(theirs, expected, **TOLERANCE)

    mergeable = all(
        layer.bias is not None or layer.mean_input is None
        for layer in model.layers.quantized.values()
    )
    one = first_output(model.merge(drawn[1]), batch) if mergeable else None
    if one is not None:
        torch.testing.assert_close(one, expected, **TOLERANCE)

    model.save_pretrained(tmp_path / "whole")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "only .* % of the weights in blocks")
        again = CoaLora.from_pretrained(tmp_path / "whole", made.make())
    torch.testing.assert_close(first_output(again, batch), expected, **TOLERANCE)
    record["models"][name] = {
        "kind": kind.name,
        "layers": len(model.layer_names),
        "plain_peft": bound(theirs, expected),
        "merged": None if one is None else bound(one, expected),
    }


def bound(one, other):
    """The power of ten above the largest difference: another processor rounds otherwise."""
    return 10.0 ** math.ceil(math.log10(max((one - other).abs().max().item(), 1e-9)))


def test_the_chapters_record_is_of_these_architectures():
    stored = json.loads((Path(__file__).parents[2] / "book/results/architectures.json").read_text())
    assert list(stored["models"]) == list(ARCHITECTURES)
    worst = max(each["plain_peft"] for each in stored["models"].values())
    assert worst <= TOLERANCE["atol"]
