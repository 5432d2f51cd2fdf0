from dataclasses import replace

import pytest
import torch

from coalora_lib.adapter import CoaLora
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.search import SearchPlan
from coalora_lib.training import TrainingPlan, evaluate, train
from coalora_lib.training import loop as training_loop
from coalora_lib.training.batches import collate
from tests.conftest import tiny, tiny_bert

SET = [[BlockwiseChoice(bits, 8, "fp32", 16, 16)] * 12 for bits in (3, 4, 8)]
PLAN = TrainingPlan(steps=30, batch_size=8, learning_rate=1e-2, cuda_graphs=True)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_static_weights_follow_the_configuration_without_moving(model, examples):
    swapped = [evaluate(model, examples, configuration).loss for configuration in SET]
    layers = [model.model.get_base_model().get_submodule(name) for name in model.layer_names]
    model.set_configuration(SET[0])
    with model.layers.static_memory():
        before = [layer.base_layer.weight.data_ptr() for layer in layers]
        in_place = [evaluate(model, examples, configuration).loss for configuration in SET]
        assert [layer.base_layer.weight.data_ptr() for layer in layers] == before
    assert in_place == pytest.approx(swapped, rel=1e-6)
    assert [evaluate(model, examples, configuration).loss for configuration in SET] == swapped


def test_static_weights_give_the_unquantized_weights_back(model, examples):
    before = evaluate(model, examples).loss
    with model.layers.static_memory():
        pass
    assert evaluate(model, examples).loss == before
    assert model.configuration is None


def test_batches_are_padded_on_to_a_multiple(examples):
    batch, padded = collate(examples[:5], 0), collate(examples[:5], 0, multiple=8)
    length = batch["input_ids"].shape[1]
    assert padded["input_ids"].shape[1] % 8 == 0
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(padded[name][:, :length], batch[name])
        assert not padded[name][:, length:].any()
    assert torch.equal(padded["labels"], batch["labels"])


def test_without_a_gpu_capturing_changes_nothing(model, examples):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    captured = train(model, examples, SET, PLAN)
    again = CoaLora.attach(tiny_bert(), rank=4, alpha=8)
    assert train(again, examples, SET, replace(PLAN, cuda_graphs=False)).losses == captured.losses


@needs_cuda
@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_captured_passes_train_as_eager_ones(distillation, examples, monkeypatch):
    plan = replace(PLAN, distillation=distillation, teacher="model" if distillation else "none")
    teacher = tiny("bert").eval() if distillation else None
    search = SearchPlan(rounds=2, restarts=2, max_steps=3, proposals=2)

    def losses():
        base = tiny("bert")
        for module in base.modules():  # eager and captured passes draw different numbers
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        base.config.attention_probs_dropout_prob = 0.0
        model = CoaLora.attach(base, rank=4, alpha=8)
        history = train(
            model, examples, SET, plan, search=search, scoring=examples[:16], teacher=teacher
        )
        return history.losses, evaluate(model, examples, SET[1]).loss

    captured, after = losses()
    monkeypatch.setattr(training_loop, "CapturedPass", lambda run, parameters: run)
    eager, eager_after = losses()
    assert captured[:5] == pytest.approx(eager[:5], rel=1e-3)
    assert after == pytest.approx(eager_after, rel=0.1, abs=0.02)
