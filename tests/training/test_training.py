import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.allocation import Constraints
from coalora_lib.kinds import get_kind
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.search import SearchPlan
from coalora_lib.spaces import NORMAL_FLOAT
from coalora_lib.training import (
    TrainingPlan,
    evaluate,
    train,
)
from coalora_lib.training.batches import ShuffledBatches, collate, ordered_batches
from coalora_lib.training.evaluation import CPU_BATCH
from coalora_lib.training.loop import Trainer
from coalora_lib.training.step import distillation_loss
from tests.conftest import tiny, tiny_bert

SET = [[BlockwiseChoice(bits, 8, "fp32", 16, 16)] * 12 for bits in (3, 4, 8)]
PLAN = TrainingPlan(steps=30, batch_size=8, learning_rate=1e-2)


def test_training_learns_the_task_under_every_configuration(model, examples):
    losses = train(model, examples, SET, PLAN).losses
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
    again = train(CoaLora.attach(tiny_bert(), rank=4, alpha=8), examples, SET, PLAN)
    assert first.losses == again.losses


def test_an_empty_set_is_refused(model, examples):
    with pytest.raises(ValueError, match="set of training configurations is empty"):
        train(model, examples, [], PLAN)


def test_a_loss_that_is_not_finite_names_step_and_configuration(model, examples):
    head = model.model.get_base_model().classifier.modules_to_save["default"]
    nn.init.constant_(head.weight, torch.inf)
    with pytest.raises(FloatingPointError, match=r"at step 0, configuration 0 of the set \(3\."):
        train(model, examples, SET[:1], PLAN)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("before", [None, SET[1]], ids=["none", "one"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_afterwards_the_model_has_the_configuration_that_it_had(kind, before, fails, examples):
    model = CoaLora.attach(tiny(kind), rank=4, alpha=8)
    data = examples if kind == "bert" else blocks(40)
    configurations = [[config[0]] * len(model.layer_names) for config in SET]
    before = None if before is None else [before[0]] * len(model.layer_names)
    if before is not None:
        model.set_configuration(before)
    layers = [model.model.get_base_model().get_submodule(name) for name in model.layer_names]
    weights = [layer.base_layer.weight.detach().clone() for layer in layers]
    plan = replace(PLAN, steps=3)
    if fails:
        model.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(model, data, configurations, plan)
    else:
        train(model, data, configurations, plan)
        assert model.training_set == configurations
    assert model.configuration == before
    assert (model.bits is None) == (before is None)
    for layer, weight in zip(layers, weights, strict=True):
        assert torch.equal(layer.base_layer.weight.cpu(), weight)


def test_without_a_configuration_training_leaves_the_pretrained_weights_and_plain_lora(
    model, examples
):
    train(model, examples, SET, PLAN)
    batch = {k: v.to(model.device) for k, v in collate(examples[:5], 0).items()}
    model.eval()
    with torch.no_grad():
        found = model(**batch).logits
        model.set_configuration(SET[0])
        assert not torch.equal(model(**batch).logits, found)
        model.set_configuration(None)
        assert torch.equal(model(**batch).logits, found)


def test_budgets_and_mappings_are_taken_as_configurations(model, examples):
    by_name = dict(zip(model.layer_names, SET[0], strict=True))
    wanted = [model.resolve(2.5), model.resolve(Constraints(budget=4.0)), SET[0]]
    given = [2.5, Constraints(budget=4.0), by_name]
    history = train(model, examples, given, PLAN)
    assert history.configurations == model.training_set == wanted
    again = CoaLora.attach(tiny_bert(), rank=4, alpha=8)
    assert train(again, examples, iter(wanted), PLAN).losses == history.losses


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (3.0, TypeError, "configurations=3.0 is not a set"),
        (
            SET[0],
            TypeError,
            r"configuration 0 of the set: BlockwiseChoice\(.* is not a configuration",
        ),
        ([3.0, "fine"], TypeError, "configuration 1 of the set: 'fine' is not a configuration"),
        ([3.0, None], TypeError, "configuration 1 of the set: None is not a configuration"),
        ([3.0, 1.0], ValueError, "configuration 1 of the set: .*1"),
        ([{"layer": SET[0][0]}], ValueError, "configuration 0 of the set: the configuration lacks"),
    ],
    ids=["a number", "one configuration", "a word", "none", "infeasible", "other names"],
)
def test_what_is_no_set_of_configurations_is_named(model, examples, wrong, kind, message):
    with pytest.raises(kind, match=message):
        train(model, examples, wrong, PLAN)


def test_evaluation_counts_in_the_examples_order(model, examples):
    result = evaluate(model, examples, SET[0], batch_size=7)
    for i in (0, 13, 39):
        single = evaluate(model, examples[i : i + 1], None)
        assert single.correct[0] == result.correct[i]
    assert result.accuracy == result.correct.double().mean()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes what is asked for")
def test_a_cpu_takes_few_examples_at_a_time_and_gives_the_same(model, examples):
    taken = []
    model.register_forward_pre_hook(
        lambda _, args, given: taken.append(len(given["input_ids"])), with_kwargs=True
    )
    whole = evaluate(model, examples, SET[0], batch_size=1000)
    assert taken == [CPU_BATCH, len(examples) - CPU_BATCH]
    small = evaluate(model, examples, SET[0], batch_size=1)
    assert whole.loss == pytest.approx(small.loss, rel=1e-5)
    assert torch.equal(whole.correct, small.correct)


def test_alternation_trains_every_step_and_grows_the_set(model, examples):
    plan = TrainingPlan(steps=11, batch_size=8)
    search = SearchPlan(rounds=3, restarts=2, max_steps=3)
    history = train(model, examples, SET, plan, search=search, scoring=examples[:16])
    assert len(history.losses) == 11
    assert len(history.rounds) == 2
    assert model.training_set == history.configurations
    for found in history.rounds:
        assert found.proposed > 0
        assert len(found.configurations) == len(found.losses) == len(found.costs)
        assert torch.isfinite(found.losses).all()
        assert set(found.kept.tolist()) <= set(range(len(found.losses)))


def test_collating_pads_to_the_longest(examples):
    batch = collate(examples[:5], pad_token=0)
    longest = max(len(example["input_ids"]) for example in examples[:5])
    assert batch["input_ids"].shape == (5, longest)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()


def test_an_epoch_sees_no_example_twice(examples):
    stream = ShuffledBatches(examples, 8, 0, seed=0)
    seen = [tuple(row) for _ in range(5) for row in strip(stream.collate(stream.next_rows()))]
    assert sorted(seen) == sorted(tuple(e["input_ids"].tolist()) for e in examples)


def strip(batch):
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
    return [row[:length] for row, length in rows]


def test_ordered_batches_cover_all_rows_once(examples):
    rows = [row for part, _ in ordered_batches(examples, 7, 0) for row in part]
    assert sorted(rows) == list(range(40))


def test_too_few_examples_for_a_batch_are_refused(examples):
    with pytest.raises(ValueError, match="40 examples do not fill one batch of 41"):
        ShuffledBatches(examples, 41, 0, seed=0)


def test_tokenizing_keeps_labels_and_cuts(reviews):
    from coalora_lib.tasks import load_classifier

    _, tokenizer = load_classifier()
    tokenized = get_kind("single-label").examples(reviews, tokenizer, max_length=4)
    assert [example["labels"].item() for example in tokenized] == [1, 0]
    assert [len(example["input_ids"]) for example in tokenized] == [4, 3]


def test_epochs_differ_and_a_stream_can_be_sought(examples):
    stream = ShuffledBatches(examples, 8, 0, seed=0)
    rows = [stream.next_rows() for _ in range(12)]
    assert rows[:5] != rows[5:10]
    assert (stream.epoch, stream.position) == (2, 2)
    again = ShuffledBatches(examples, 8, 0, seed=0)
    again.seek(1, 3)
    assert [again.next_rows() for _ in range(4)] == rows[8:]
    other = ShuffledBatches(examples, 8, 0, seed=1)
    assert other.next_rows() != rows[0]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_both_schedules_warm_up_and_end_at_zero(model, examples, schedule):
    trainer = Trainer(model, examples, SET, replace(PLAN, schedule=schedule))
    rates = []
    for _ in range(PLAN.steps):
        rates.append(trainer.schedule.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.schedule.step()
    assert rates[0] == 0
    assert max(rates) == rates[3] == PLAN.learning_rate
    assert trainer.schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"schedule": "constant"}, "schedule='constant' is not known"),
        ({"warmup": 1.5}, r"warmup=1\.5 must be at most 1"),
        ({"distillation": -1}, "distillation=-1 must be at least 0"),
        ({"teacher": "me"}, "teacher='me' is not known; allowed: none, model, self"),
        ({"teacher": "self"}, "distillation=0.0 with teacher='self'"),
        ({"distillation": 0.5}, "distillation=0.5 with teacher='none'"),
        ({"learning_rate": math.nan}, "learning_rate=nan must be at least 0"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be at most"),
        (
            {"teacher": "self", "distillation": 0.5, "configurations_per_step": 1},
            "needs at least 2 configurations_per_step",
        ),
    ],
    ids=[
        "steps",
        "schedule",
        "warmup",
        "distillation",
        "teacher",
        "teacher without distillation",
        "distillation without teacher",
        "rate",
        "seed",
        "one per step",
    ],
)
def test_a_plan_out_of_range_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **wrong)


@pytest.mark.parametrize("name", ["steps", "seed", "learning_rate", "warmup", "temperature"])
@pytest.mark.parametrize("value", ["3", [3], None, True], ids=str)
def test_a_number_of_a_plan_that_is_none_is_named(name, value):
    with pytest.raises(TypeError, match=rf"{name}=.* must be a (whole )?number"):
        replace(PLAN, **{name: value})


def test_after_a_loss_that_is_not_finite_the_weights_are_those_before(model, examples):
    head = model.model.get_base_model().classifier.modules_to_save["default"]
    nn.init.constant_(head.weight, torch.inf)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(FloatingPointError):
        train(model, examples, SET, PLAN)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name].cpu(), value) for name, value in before.items())


def test_a_set_for_another_model_is_refused(model, examples):
    with pytest.raises(ValueError, match="configuration 1 of the set: 11 choices for 12 l"):
        train(model, examples, [SET[0], SET[1][1:]], PLAN)
    with pytest.raises(ValueError, match="needs a teacher"):
        train(model, examples, SET, replace(PLAN, distillation=0.5, teacher="model"))
    with pytest.raises(ValueError, match="has no use for a teacher"):
        train(model, examples, SET, PLAN, teacher=tiny_bert())
    itself = replace(PLAN, distillation=0.5, teacher="self")
    with pytest.raises(ValueError, match="has no use for a teacher"):
        train(model, examples, SET, itself, teacher=tiny_bert())
    with pytest.raises(ValueError, match="a BertForSequenceClassification has none"):
        train(tiny_bert(), examples, None, itself)
    with pytest.raises(ValueError, match="examples to score on"):
        train(model, examples, SET, PLAN, search=SearchPlan(2, 2, 2))


def test_of_itself_the_finest_configuration_teaches_the_others_of_a_step(model, examples):
    plan = replace(PLAN, distillation=0.5, teacher="self", configurations_per_step=3)
    trainer = Trainer(model, examples, SET, plan)
    passes, forward_backward = [], trainer._pass

    def spy(batch, target, keep_logits):
        found = forward_backward(batch, target, keep_logits)
        passes.append((model.configuration, target, found))
        return found

    trainer._pass = spy
    before = model.model.get_base_model().classifier.modules_to_save["default"].weight.clone()
    for _ in range(4):
        passes.clear()
        trainer.train_step()
        (finest, nothing, (_, logits)), *others = passes
        assert finest == [NORMAL_FLOAT.finest()] * len(model.layer_names)
        assert nothing is None
        for configuration, target, found in others:
            assert configuration in SET
            assert target is logits
            assert found.logits is None
    after = model.model.get_base_model().classifier.modules_to_save["default"].weight
    assert not torch.equal(before, after)


def test_distillation_follows_the_teacher(examples):
    torch.manual_seed(5)
    teacher = tiny_bert()
    nn.init.normal_(teacher.classifier.weight, std=2.0)
    # Labels say nothing here: all weight is on the teacher.
    plan = replace(PLAN, distillation=1.0, teacher="model", steps=60)
    student = CoaLora.attach(tiny_bert(), rank=4, alpha=8)
    student.set_configuration(SET[-1])
    train(student, examples, SET, plan, teacher=teacher)
    batch = collate(examples, 0)
    labels = batch.pop("labels")
    with torch.no_grad():
        wanted = teacher.cpu().eval()(**batch).logits.argmax(-1)
        found = student.cpu().eval()(**batch).logits.argmax(-1)
    assert (wanted == found).double().mean() > 0.85
    assert (wanted == labels).double().mean() < 0.85


def test_distillation_loss_is_the_divergence():
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    loss = distillation_loss(student, teacher, temperature=2.0)
    p, q = (torch.softmax(each / 2, -1) for each in (teacher, student))
    expected = 4 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(loss, expected)
    assert distillation_loss(teacher, teacher, 2.0) == pytest.approx(0, abs=1e-12)


def blocks(count=12, length=8):
    """Token sequences that count upwards: a causal model can learn them."""
    starts = torch.arange(count) % 20 + 6
    rows = [torch.arange(length) + start for start in starts]
    return [{"input_ids": row, "attention_mask": row * 0 + 1, "labels": row} for row in rows]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_decoder_trains_and_is_measured_in_perplexity(kind):
    model = CoaLora.attach(tiny(kind), rank=8)
    layers = len(model.layer_names)
    configurations = [[config[0]] * layers for config in SET]
    data = blocks()
    before = evaluate(model, data, configurations[0])
    train(model, data, configurations, replace(PLAN, steps=150, learning_rate=1e-2))
    for configuration in configurations:
        after = evaluate(model, data, configuration)
        assert after.perplexity < 0.75 * before.perplexity
        assert after.accuracy > 0.4 > 10 * before.accuracy
    assert len(after.correct) == 12 * 7


def test_perplexity_ignores_padding_and_follows_the_models_own_loss():
    model = tiny("llama")
    data = [*blocks(3, 8), *blocks(2, 5)]
    result = evaluate(model, data, batch_size=5)
    model.cpu()
    alone = torch.stack([model(**collate([each], 0)).loss for each in data])
    tokens = torch.tensor([7.0] * 3 + [4.0] * 2)
    tolerance = 1e-2 if torch.cuda.is_available() else 1e-5  # bfloat16 there
    assert result.loss == pytest.approx((alone * tokens).sum().item() / 29, rel=tolerance)
    assert len(result.correct) == 29


def test_texts_become_blocks(reviews):
    from coalora_lib.tasks import load_classifier

    _, tokenizer = load_classifier()
    made = get_kind("causal-lm").examples(reviews, tokenizer, 2)
    assert [len(each["input_ids"]) for each in made] == [2, 2]
    assert torch.equal(made[0]["labels"], made[0]["input_ids"])
    with pytest.raises(ValueError, match="4 tokens do not fill one block of 5"):
        get_kind("causal-lm").examples(reviews, tokenizer, 5)
