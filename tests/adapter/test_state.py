"""Habits of PyTorch, PEFT and transformers users: none corrupts weights or configuration."""

import copy

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import Trainer, TrainerCallback, TrainingArguments

from coalora_lib.adapter import CoaLora
from coalora_lib.quantization import BlockwiseChoice, quantize
from coalora_lib.training import TrainingPlan, train
from tests.adapter.test_export import attached, logits
from tests.conftest import some_means, tiny

each_kind = pytest.mark.parametrize("kind", ["bert", "llama"])


@pytest.fixture(params=["device", "disk"], autouse=True)
def _place(request, monkeypatch):
    """Every habit, with the pre-trained weights beside the model and in a file."""
    monkeypatch.setitem(CoaLora.attach.__func__.__kwdefaults__, "pretrained", request.param)


LAYERS = {"bert": 12, "llama": 14}


def coarse(kind):
    return [BlockwiseChoice(2, 2, "bf16", 64, 256)] * LAYERS[kind]


def fine(kind):
    return [BlockwiseChoice(8, 8, "fp32", 16, 16)] * LAYERS[kind]


def clone(state):
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def weights_are_those_of(model, kind, configuration):
    """Every layer computes with the quantizer's weight, made anew from a fresh base model."""
    base = tiny(kind)
    for (name, layer), choice in zip(model.layers.quantized.items(), configuration, strict=True):
        pretrained = base.get_submodule(name).weight.to(layer.weight.device)
        assert torch.equal(layer.pretrained, pretrained), name
        assert torch.equal(layer.weight, quantize(pretrained, choice).dequantize()), name
    return True


def answers(kind):
    """Labels for a loss: of a classifier, or tokens."""
    return torch.tensor([0, 1]) if kind == "bert" else torch.arange(6, 26).reshape(2, 10)


def step(model, kind):
    batch = {"input_ids": torch.arange(6, 26).reshape(2, 10), "labels": answers(kind)}
    model.train()
    model(**batch).loss.backward()


@each_kind
def test_no_weight_that_follows_the_configuration_is_in_a_state_dict(kind):
    model = attached(kind)
    names = set(model.state_dict()) | {name for name, _ in model.named_parameters()}
    names |= {name for name, _ in model.named_buffers()}
    assert not any(name.endswith("base_layer.weight") for name in names)


@each_kind
def test_loading_a_state_brings_the_trained_parameters_back_and_no_weights(kind):
    model = attached(kind)
    model.set_configuration(fine(kind))
    best = clone(model.state_dict())
    model.set_configuration(coarse(kind))
    expected = logits(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    assert not torch.equal(logits(model), expected)
    model.load_state_dict(best)
    assert torch.equal(logits(model), expected)
    model.set_configuration(coarse(kind))
    assert torch.equal(logits(model), expected)
    assert weights_are_those_of(model, kind, coarse(kind))


@each_kind
def test_a_state_loaded_before_any_configuration_leaves_the_pretrained_weights(kind):
    model, other = attached(kind), attached(kind)
    other.set_configuration(coarse(kind))
    model.load_state_dict(clone(other.state_dict()))
    model.set_configuration(fine(kind))
    assert weights_are_those_of(model, kind, fine(kind))


@each_kind
def test_writing_into_every_parameter_and_buffer_leaves_the_weights(kind):
    model = attached(kind)
    model.set_configuration(fine(kind))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.zero_()
    model.set_configuration(coarse(kind))
    assert weights_are_those_of(model, kind, coarse(kind))


class Switching(TrainerCallback):
    """A habit: another configuration before every step and every evaluation."""

    def __init__(self, model, kind):
        self.model, self.choices = model, [coarse(kind), fine(kind)]

    def on_step_begin(self, *_, **__):
        self.choices.reverse()
        self.model.set_configuration(self.choices[0])


def test_a_trainer_that_loads_its_best_model_leaves_the_weights(tmp_path):
    model = attached("bert")
    rows = {"input_ids": torch.arange(6, 46).reshape(4, 10).tolist(), "labels": [0, 1, 0, 1]}
    data = Dataset.from_dict(rows)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        learning_rate=1e-2,
        load_best_model_at_end=True,
        label_names=["labels"],
        remove_unused_columns=False,
        report_to=[],
        bf16=torch.cuda.is_available(),  # accelerate has one precision per process: ours
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        callbacks=[Switching(model, "bert")],
    )
    trainer.train()
    assert weights_are_those_of(model, "bert", model.configuration)
    for configuration in (coarse("bert"), fine("bert")):
        model.set_configuration(configuration)
        assert weights_are_those_of(model, "bert", configuration)


@each_kind
@pytest.mark.parametrize("way", ["merge_and_unload", "merge_adapter", "save_pretrained"])
def test_what_would_leave_the_adjustment_out_is_refused_with_what_to_call(kind, way, tmp_path):
    model = attached(kind)
    model.set_configuration(coarse(kind))
    before = logits(model)
    arguments = [tmp_path / "inner"] if way == "save_pretrained" else []
    with pytest.raises(RuntimeError, match=r"call CoaLora\.\w+"):
        getattr(model.model, way)(*arguments)
    assert torch.equal(logits(model), before)
    assert weights_are_those_of(model, kind, coarse(kind))


@each_kind
@pytest.mark.parametrize("adjuster", ["hypernetwork", "bank", "none"])
def test_a_copy_is_a_model_of_its_own(kind, adjuster):
    model = attached(kind, adjuster=adjuster)
    model.set_configuration(coarse(kind))
    step(model, kind)  # leaves factors that belong to a graph
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    before = logits(model)
    for parameter in twin.parameters():
        if parameter.requires_grad:
            nn.init.zeros_(parameter)
    twin.set_configuration(fine(kind))
    assert torch.equal(logits(model), before)
    assert weights_are_those_of(model, kind, coarse(kind))
    assert weights_are_those_of(twin, kind, fine(kind))
    step(twin, kind)


def test_an_averaged_model_averages_the_trained_parameters():
    model = attached("bert")
    model.set_configuration(coarse("bert"))
    step(model, "bert")
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    assert torch.equal(logits(averaged.module), logits(model))
    averaged.module.set_configuration(fine("bert"))
    assert weights_are_those_of(averaged.module, "bert", fine("bert"))


@each_kind
@pytest.mark.parametrize("adjuster", ["hypernetwork", "bank", "none"])
def test_a_configuration_set_under_inference_mode_can_be_trained(kind, adjuster):
    base = tiny(kind)
    model = CoaLora.attach(
        base, rank=4, adjuster=adjuster, bias_correction=True, mean_inputs=some_means(base)
    )
    with torch.inference_mode():
        model.set_configuration(coarse(kind))
        model(input_ids=torch.arange(6, 26).reshape(2, 10))
    step(model, kind)
    model.set_configuration(coarse(kind))
    step(model, kind)


@each_kind
def test_what_was_trained_is_saved_after_requires_grad_is_switched_off(kind, tmp_path):
    model = attached(kind)
    model.set_configuration(coarse(kind))
    expected = logits(model)
    model.requires_grad_(False)
    model.save_pretrained(tmp_path / "saved")
    again = CoaLora.from_pretrained(tmp_path / "saved", tiny(kind))
    assert torch.equal(logits(again), expected)


@pytest.mark.parametrize("before", [None, "coarse"])
def test_training_leaves_the_configuration_that_was_there(examples, before):
    model = attached("bert")
    configuration = None if before is None else coarse("bert")
    model.set_configuration(configuration)
    train(model, examples, [fine("bert"), 3.0], TrainingPlan(steps=3, batch_size=4))
    assert model.configuration == configuration


@each_kind
@pytest.mark.parametrize(
    "options",
    [
        {"space": "fp"},
        {"bias_correction": True},
        {"mean_inputs": {}},
        {"start": "svd", "start_configuration": 1.0},
        {"start": "svd", "rank": 33},
        {"start": "residual", "frozen_rank": 40},
        {"errors": torch.ones(3, 432)},
        {"adjuster": "bank", "start": "svd"},
    ],
    ids=lambda options: "-".join(options),
)
def test_a_refused_attach_leaves_the_base_model(kind, options):
    base = tiny(kind)
    modules = [(name, type(module)) for name, module in base.named_modules()]
    with pytest.raises(ValueError, match=r"\w"):
        CoaLora.attach(base, **({"rank": 4} | options))
    assert [(name, type(module)) for name, module in base.named_modules()] == modules
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert torch.equal(logits(base), logits(tiny(kind)))
    CoaLora.attach(base, rank=4)  # and can be attached to


@each_kind
def test_no_configuration_is_the_pretrained_model_with_plain_lora(kind):
    model = attached(kind)
    before = logits(model)
    model.set_configuration(coarse(kind))
    assert not torch.equal(logits(model), before)
    model.set_configuration(None)
    assert torch.equal(logits(model), before)
    assert model.configuration is None
    assert model.bits is None


@each_kind
def test_a_model_moved_from_inside_keeps_its_weights_together(kind):
    """``model.model.to`` and ``model.model.get_base_model().to`` reach the weights too."""
    model = attached(kind)
    model.set_configuration(coarse(kind))
    model.model.get_base_model().to(torch.float64)
    model.set_configuration(fine(kind))
    for name, layer in model.layers.quantized.items():
        pretrained = tiny(kind).get_submodule(name).weight.double()
        choice = fine(kind)[0]
        assert torch.equal(layer.weight, quantize(pretrained, choice).dequantize()), name


def test_a_base_that_cannot_be_adapted_is_refused():
    adapted = tiny("bert")
    CoaLora.attach(adapted, rank=4)
    with pytest.raises(ValueError, match="already has an adapter"):
        CoaLora.attach(adapted, rank=4)
    with pytest.raises(ValueError, match="meta device"):
        CoaLora.attach(tiny("llama").to("meta"), rank=4)
    loaded = tiny("bert")
    loaded.is_loaded_in_4bit = True
    with pytest.raises(ValueError, match="quantized by bitsandbytes already"):
        CoaLora.attach(loaded, rank=4)
