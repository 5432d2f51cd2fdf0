"""Training and evaluation that aim at a model which computes along."""

from dataclasses import replace

import pytest
import torch

from coalora_lib.adapter import CoaLora
from coalora_lib.kinds import NextToken
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.search import SearchPlan
from coalora_lib.training import TrainingPlan, evaluate, evaluation, train
from coalora_lib.training import loop as training_loop
from tests.conftest import tiny

LENGTH = 8
PLAN = TrainingPlan(steps=60, batch_size=8, learning_rate=5e-3, cuda_graphs=True)


class Counted(NextToken):
    """Counts the batches that it was asked for aims of."""

    def __init__(self, unquantized):
        super().__init__(unquantized)
        self.batches = []

    def aimed(self, batch):
        self.batches.append(len(batch["input_ids"]))
        return super().aimed(batch)


@pytest.fixture
def blocks():
    generator = torch.Generator().manual_seed(1)
    made = (torch.randint(0, 64, (LENGTH,), generator=generator) for _ in range(512))
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in made]


def base(kind="llama"):
    """With weights so large that quantization changes what the model says."""
    model = tiny(kind).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "norm" not in name:
            parameter.data *= 10
    return model


def adapted(kind="llama"):
    return CoaLora.attach(base(kind), rank=4, alpha=8, adjuster="none")


def configurations(model):
    each = [BlockwiseChoice(bits, 8, "fp32", 16, 16) for bits in (2, 3)]
    return [[choice] * len(model.layer_names) for choice in each]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_training_brings_the_quantized_model_nearer(family, blocks):
    unquantized, model = base(family), adapted(family)
    before, kind = [p.clone() for p in unquantized.parameters()], NextToken(unquantized)
    coarse = configurations(model)
    losses = [evaluate(model, blocks[448:], each, kind=kind).loss for each in coarse]
    train(model, blocks[:448], coarse, PLAN, kind=kind)
    after = [evaluate(model, blocks[448:], each, kind=kind).loss for each in coarse]
    assert all(now < 0.9 * then for now, then in zip(after, losses, strict=True))
    for first, second in zip(before, unquantized.parameters(), strict=True):
        assert torch.equal(first, second.cpu())
        assert second.grad is None


def test_the_unquantized_model_is_asked_once_for_all_configurations_of_a_step(blocks):
    kind, model = Counted(base()), adapted()
    plan = replace(PLAN, steps=3, configurations_per_step=2)
    train(model, blocks, configurations(model), plan, kind=kind)
    assert kind.batches == [8, 8, 8]


def test_a_model_does_not_aim_at_itself(blocks):
    """An adapter changes its model in place: the loss would be zero whatever it does."""
    shared = base()
    kind, model = NextToken(shared), CoaLora.attach(shared, rank=4, alpha=8)
    with pytest.raises(ValueError, match="the LlamaForCausalLM to aim at is the one that is to be"):
        train(model, blocks, configurations(model), PLAN, kind=kind)
    with pytest.raises(ValueError, match="load it once more, or copy it before an adapter"):
        evaluate(model, blocks, kind=kind)


def test_a_search_scores_by_the_same_aims(blocks):
    kind, model = NextToken(base()), adapted()
    search = SearchPlan(rounds=2, restarts=1, max_steps=2, proposals=1)
    plan = replace(PLAN, steps=2)
    history = train(
        model, blocks, configurations(model), plan, search=search, scoring=blocks[:8], kind=kind
    )
    (found,) = history.rounds
    assert (found.losses > 0).all()


def test_an_evaluation_takes_as_many_texts_as_the_logits_allow(blocks, monkeypatch):
    kind, model = Counted(base()), adapted()
    coarse = configurations(model)[0]
    blocks = blocks[:48]
    whole = evaluate(model, blocks, coarse, kind=kind)
    assert kind.batches[0] > 3
    kind.batches.clear()
    monkeypatch.setattr(evaluation, "MOST_LOGITS", 3 * LENGTH * 64 + 1)
    parts = evaluate(model, blocks, coarse, kind=kind)
    assert kind.batches == [3] * 16
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.metrics["agreement"] == whole.metrics["agreement"]
    monkeypatch.setattr(evaluation, "MOST_LOGITS", 1)  # one text at least
    labelled = [block | {"labels": block["input_ids"]} for block in blocks]
    assert evaluate(model, labelled[:2], coarse).loss > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_passes_aim_as_eager_ones(blocks, monkeypatch):
    def losses():
        model = adapted()
        return train(model, blocks, configurations(model), PLAN, kind=NextToken(base())).losses

    captured = losses()
    monkeypatch.setattr(training_loop, "CapturedPass", lambda run, parameters: run)
    assert captured[:5] == pytest.approx(losses()[:5], rel=1e-2)
