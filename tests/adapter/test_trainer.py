"""transformers' Trainer trains it, keeps its best and goes on after an interruption."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from coalora_lib.adapter import CoaLora
from coalora_lib.quantization import BlockwiseChoice
from tests.adapter.test_state import weights_are_those_of
from tests.conftest import tiny

COARSE = BlockwiseChoice(2, 2, "bf16", 64, 256)
FINE = BlockwiseChoice(8, 8, "fp32", 16, 16)
EPOCHS, STEPS = 3, 3  #: epochs, and steps in each


def attached(kind):
    """With dropout, so that an interruption must also bring the random numbers back."""
    base = tiny(kind)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    model = CoaLora.attach(base, rank=4)
    model.set_configuration([COARSE] * len(model.layer_names))
    return model


def rows(kind):
    """Columns that the model takes, and two that it does not."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 64, (6, 8), generator=generator).tolist()
    labels = [0, 1, 0, 1, 1, 0] if kind == "bert" else ids
    return Dataset.from_dict(
        {"input_ids": ids, "labels": labels, "text": ["a"] * 6, "idx": list(range(6))}
    )


class Switching(TrainerCallback):
    """Another configuration at each step, told by its number."""

    def __init__(self, model):
        self.model = model

    def on_step_begin(self, _, state, *__, **___):
        choice = FINE if state.global_step % 2 else COARSE
        self.model.set_configuration([choice] * len(self.model.layer_names))


class Interrupting(TrainerCallback):
    def on_epoch_end(self, _, state, control, **__):
        control.should_training_stop = state.epoch >= 1


def trainer(model, kind, folder, *callbacks, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    data = rows(kind)
    return Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, callbacks=list(callbacks)
    )


def trained(model):
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    return True


@pytest.mark.parametrize(
    ("kind", "switching", "best"),
    [("bert", False, True), ("bert", True, True), ("gpt2", True, False)],
    ids=["one-configuration-best", "switching-best", "switching-last"],
)
def test_an_interrupted_training_ends_with_the_same_weights(kind, switching, best, tmp_path):
    def run(folder, *callbacks, resume=None):
        model = attached(kind)
        callbacks += (Switching(model),) if switching else ()
        options = {"load_best_model_at_end": best}
        trainer(model, kind, tmp_path / folder, *callbacks, **options).train(resume)
        return model

    whole = run("whole")
    run("parts", Interrupting())
    last = get_last_checkpoint(str(tmp_path / "parts"))
    assert last.endswith(f"checkpoint-{STEPS}")
    resumed = run("parts", resume=last)
    assert not torch.equal(whole.adjuster.output.weight, attached(kind).adjuster.output.weight)
    assert same(trained(resumed), trained(whole))
    assert resumed.configuration == whole.configuration
    assert kind == "gpt2" or weights_are_those_of(resumed, kind, resumed.configuration)


def test_the_best_model_is_loaded(tmp_path):
    model = attached("bert")
    one = trainer(model, "bert", tmp_path, load_best_model_at_end=True)
    one.train()
    losses = {
        entry["step"]: entry["eval_loss"] for entry in one.state.log_history if "eval_loss" in entry
    }
    assert len(losses) == EPOCHS
    assert one.evaluate()["eval_loss"] == pytest.approx(min(losses.values()))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_what_is_saved_holds_nothing_twice_and_no_quantized_layer(kind, tmp_path):
    model = attached(kind)
    one = trainer(model, kind, tmp_path, max_steps=1)
    one.train()
    one.save_model(str(tmp_path / "saved"))
    state = load_file(tmp_path / "saved" / "model.safetensors")
    quantized = sum(weight.numel() for weight in model.pretrained_weights.values())
    assert sum(tensor.numel() for tensor in state.values()) <= model.num_parameters() - quantized
    assert not any(name.endswith("base_layer.weight") for name in state)
    again = attached(kind)
    again.load_state_dict(state)
    assert same(trained(again), trained(model))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_with_gradient_checkpointing_it_ends_with_the_same_weights(kind, tmp_path):
    found = []
    for checkpointing in (False, True):
        model = attached(kind).double()
        options = {"gradient_checkpointing": checkpointing, "include_num_input_tokens_seen": "all"}
        trainer(model, kind, tmp_path, Switching(model), max_steps=3, **options).train()
        found.append(trained(model))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, msg=name)


def test_a_model_with_tied_weights_loads_either_form_of_its_state():
    model = attached("gpt2")
    state = model.state_dict()
    tied = "model.base_model.model.lm_head.weight"
    assert tied not in state
    wte = "model.base_model.model.transformer.wte.weight"
    for each in (state, state | {tied: state[wte]}):
        again = attached("gpt2")
        nn.init.zeros_(again.get_input_embeddings().weight)
        again.load_state_dict(each)
        assert torch.equal(again.get_input_embeddings().weight, state[wte])
