import pytest
import torch
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.configuration import LayerConfig
from coalora_lib.training import SearchPlan, TrainingPlan, alternate, evaluate, tokenize, train
from coalora_lib.training.batches import collate, ordered_batches, shuffled_batches
from tests.conftest import tiny_bert

SET = [[LayerConfig(bits, 8, "fp32", 16, 16)] * 12 for bits in (3, 4, 8)]
PLAN = TrainingPlan(steps=30, batch_size=8, learning_rate=1e-2)


def test_training_learns_the_task_under_every_configuration(model, examples):
    losses = train(model, examples, SET, PLAN)
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    for configuration in SET:
        assert evaluate(model, examples, configuration).accuracy > 0.9


def test_frozen_weights_do_not_move(model, examples):
    model.set_configuration(SET[0])
    layer = model.model.get_base_model().bert.encoder.layer[0].output.dense.base_layer
    weight, bias = layer.weight.cpu().clone(), layer.bias.cpu().clone()
    train(model, examples, SET, PLAN)
    model.set_configuration(SET[0])
    assert torch.equal(layer.weight.cpu(), weight)
    assert torch.equal(layer.bias.cpu(), bias)


def test_the_same_seed_trains_the_same(model, base_model, examples):
    first = train(model, examples, SET, PLAN)
    torch.manual_seed(0)

    again = train(CoaLora.attach(tiny_bert(), rank=4, alpha=8), examples, SET, PLAN)
    assert first == again


def test_an_empty_set_is_refused(model, examples):
    with pytest.raises(ValueError, match="set of training configurations is empty"):
        train(model, examples, [], PLAN)


def test_a_loss_that_is_not_finite_names_step_and_configuration(model, examples):
    head = model.model.get_base_model().classifier.modules_to_save["default"]
    nn.init.constant_(head.weight, torch.inf)
    with pytest.raises(FloatingPointError, match=r"at step 0, configuration 0 of the set \(3\."):
        train(model, examples, SET[:1], PLAN)


def test_evaluation_counts_in_the_examples_order(model, examples):
    result = evaluate(model, examples, SET[0], batch_size=7)
    for i in (0, 13, 39):
        single = evaluate(model, examples[i : i + 1], None)
        assert single.correct[0] == result.correct[i]
    assert result.accuracy == result.correct.double().mean()


def test_alternation_trains_every_step_and_grows_the_set(model, examples):
    plan = TrainingPlan(steps=11, batch_size=8)
    search = SearchPlan(rounds=3, starts=2, max_steps=3)
    losses, rounds = alternate(model, examples, SET, plan, search, examples[:16])
    assert len(losses) == 11
    assert len(rounds) == 2
    for found in rounds:
        assert found.proposed > 0
        assert len(found.configurations) == len(found.losses) == len(found.bits)
        assert torch.isfinite(found.losses).all()
        assert set(found.kept.tolist()) <= set(range(len(found.losses)))


def test_collating_pads_to_the_longest(examples):
    batch = collate(examples[:5], pad_token=0)
    longest = max(len(example["input_ids"]) for example in examples[:5])
    assert batch["input_ids"].shape == (5, longest)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()


def test_an_epoch_sees_no_example_twice(examples):
    stream = shuffled_batches(examples, 8, 0, torch.Generator().manual_seed(0))
    seen = [tuple(row) for _ in range(5) for row in strip(next(stream))]
    assert sorted(seen) == sorted(tuple(e["input_ids"].tolist()) for e in examples)


def strip(batch):
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
    return [row[:length] for row, length in rows]


def test_ordered_batches_cover_all_rows_once(examples):
    rows = [row for part, _ in ordered_batches(examples, 7, 0) for row in part]
    assert sorted(rows) == list(range(40))


def test_too_few_examples_for_a_batch_are_refused(examples):
    with pytest.raises(ValueError, match="40 examples do not fill one batch of 41"):
        next(shuffled_batches(examples, 41, 0, torch.Generator()))


def test_tokenizing_keeps_labels_and_cuts(reviews):
    from coalora_lib.tasks import load_classifier

    _, tokenizer = load_classifier()
    tokenized = tokenize(reviews, tokenizer, max_length=4)
    assert [example["labels"].item() for example in tokenized] == [1, 0]
    assert [len(example["input_ids"]) for example in tokenized] == [4, 3]
