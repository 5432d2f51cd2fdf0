"""Distributions of the next token near another model's, against sums token by token."""

import math

import pytest
import torch
from datasets import Dataset

from coalora_lib.kinds import NextToken, get_kind
from coalora_lib.training import evaluate, with_aims
from tests.conftest import tiny
from tests.kinds.words import tokenizer

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
BATCH = {"input_ids": torch.arange(6, 21).reshape(3, 5), "attention_mask": MASK}


def decoder(kind="llama", away=0.0):
    """A tiny decoder whose distributions are far from even, in float64, and others near it."""
    model = tiny(kind).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        size = (2, *parameter.shape)
        large, small = torch.randn(size, generator=generator, dtype=torch.float64)
        parameter.data += 0.3 * large + away * small
    return model


def brute_force(model, unquantized, batch=BATCH):
    """KL(unquantized || model) of each real token, and whether the likeliest next ones agree."""
    with torch.no_grad():
        both = [each(**batch).logits.softmax(-1).tolist() for each in (unquantized, model)]
    found, agree = [], []
    for text, row in enumerate(batch["attention_mask"].tolist()):
        for token in range(sum(row)):
            meant, said = (of[text][token] for of in both)
            found.append(sum(p * math.log(p / q) for p, q in zip(meant, said, strict=True)))
            agree.append(meant.index(max(meant)) == said.index(max(said)))
    return found, agree


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_loss_is_the_mean_divergence_of_all_tokens_but_padding(family):
    """The last token of a text among them: 5 + 3 + 1 of these."""
    model, unquantized = decoder(family, 0.04), decoder(family)
    each, agree = brute_force(model, unquantized)
    assert len(each) == 9
    kind = NextToken(unquantized)
    batch = kind.aimed(BATCH)
    assert not batch["labels"].requires_grad
    output = model(**kind.training_inputs(batch))
    assert output.loss is None  # of its own, which would take the time and memory
    expected = sum(each) / 9
    assert expected > 0.001
    assert kind.loss(output, batch).item() == pytest.approx(expected, rel=1e-12)
    scored = kind.score(output, batch)
    assert (scored.loss, scored.count) == (pytest.approx(sum(each), rel=1e-12), 9)
    assert [len(tokens) for tokens in scored.predicted] == [5, 3, 1]
    metrics = kind.metrics(scored.predicted, scored.expected, expected)
    assert metrics == {"agreement": pytest.approx(sum(agree) / 9)}
    assert 0 < metrics["agreement"] < 1


def test_without_a_mask_every_token_counts():
    model, kind = decoder(away=0.04), NextToken(decoder())
    plain = {"input_ids": BATCH["input_ids"]}
    whole = plain | {"attention_mask": torch.ones_like(MASK)}
    losses = []
    for batch in (kind.aimed(plain), kind.aimed(whole)):
        output = model(**kind.inputs(batch))
        scored = kind.score(output, batch)
        losses += [kind.loss(output, batch).item(), scored.loss / scored.count]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)


def test_gradients_are_those_of_the_divergence_of_real_tokens():
    model, unquantized = decoder(away=0.04), decoder()
    kind, weight = NextToken(unquantized), model.lm_head.weight
    batch = kind.aimed(BATCH)
    (found,) = torch.autograd.grad(kind.loss(model(**BATCH), batch), weight)
    said = kind.outcome(model(**BATCH), BATCH)
    with torch.no_grad():
        target = kind.outcome(unquantized(**BATCH), BATCH)
    (expected,) = torch.autograd.grad(kind.divergence(said, target), weight)
    torch.testing.assert_close(found, expected)


def test_the_unquantized_model_itself_has_no_loss():
    model = decoder()
    examples = [dict(zip(BATCH, rows, strict=True)) for rows in zip(*BATCH.values(), strict=True)]
    found = evaluate(model, examples, kind=NextToken(decoder()))
    assert found.loss == 0
    assert found.metrics == {"loss": 0, "agreement": 1}
    assert (found.primary, found.value) == ("loss", 0)
    assert "loss" in found.objective.LOWER


def test_examples_are_a_language_models_blocks_without_labels():
    split = Dataset.from_dict({"sentence": ["a b c d a b"] * 4})
    blocks = get_kind("causal-lm").examples(split, tokenizer(), 8)
    found = get_kind("next-token").examples(split, tokenizer(), 8)
    assert len(found) == len(blocks) > 1
    for example, block in zip(found, blocks, strict=True):
        assert set(example) == {"input_ids", "attention_mask"}
        assert torch.equal(example["input_ids"], block["input_ids"])


def test_without_a_model_to_aim_at_there_is_no_loss():
    kind, model = get_kind("next-token"), decoder()
    missing = r"kind 'next-token' needs a model to aim at.*give NextToken\(unquantized\)"
    tokens = BATCH | {"labels": BATCH["input_ids"]}  # as a language model's examples have them
    for batch in (kind.aimed(BATCH), tokens):
        output = model(**BATCH)
        with pytest.raises(ValueError, match=missing):
            kind.loss(output, batch)
        with pytest.raises(ValueError, match=missing):
            kind.score(output, batch)
    with pytest.raises(ValueError, match="examples of kind 'next-token' need labels"):
        with_aims(model, [{"input_ids": torch.ones(3, dtype=torch.int64)}], kind)


def test_a_model_with_another_vocabulary_is_refused():
    other = decoder()
    other.resize_token_embeddings(70)
    kind = NextToken(other)
    with pytest.raises(ValueError, match=r"shape \(3, 5, 70\), and the model \(3, 5, 64\)"):
        kind.loss(decoder()(**BATCH), kind.aimed(BATCH))


def test_it_is_not_distilled_besides():
    with pytest.raises(ValueError, match="distillation is not for tasks of kind 'next-token'"):
        NextToken(decoder()).distributions(torch.zeros(1, 2, 3), {})
