"""Each kind's examples, loss and metrics against the same by another route."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from coalora_lib.kinds import IGNORED, get_kind, kind_of, kinds, register_kind
from coalora_lib.kinds.embedding import neighbours_kept
from coalora_lib.training import with_aims
from tests.conftest import NO_DROPOUT, SIZES, tiny
from tests.kinds.words import tokenizer

BERT = transformers.BertConfig(**SIZES, **NO_DROPOUT, intermediate_size=48)
WORDS = tokenizer()


def bert(head, **changed):
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**BERT.to_dict(), "vocab_size": len(WORDS), **changed})
    return getattr(transformers, f"BertFor{head}")(config).eval()


def stacked(examples):
    """Examples of one length as a batch."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


@torch.no_grad()
def measured(kind, model, batch):
    """Metrics and mean loss as an evaluation finds them, and the model's own loss."""
    scored = kind.score(model(**kind.inputs(batch)), batch)
    loss = scored.loss / scored.count
    own = kind.loss(model(**batch), batch).item()
    return kind.metrics(scored.predicted, scored.expected, loss), loss, own


def test_one_of_several_classes():
    kind = get_kind("single-label")
    split = Dataset.from_dict({"sentence": ["a b", "b c", "c d"], "label": [0, 2, 1]})
    batch = stacked(kind.examples(split, WORDS, 8))
    metrics, loss, own = measured(kind, bert("SequenceClassification", num_labels=3), batch)
    assert loss == pytest.approx(own, rel=1e-5)
    guessed = bert("SequenceClassification", num_labels=3)(**kind.inputs(batch)).logits.argmax(-1)
    assert metrics["accuracy"] == pytest.approx((guessed == batch["labels"]).float().mean().item())
    perfect = kind.metrics(batch["labels"], batch["labels"], 0.0)
    assert perfect == {"accuracy": 1, "f1": 1, "matthews": 1}


def test_several_classes_at_once():
    kind = get_kind("several-labels")
    split = Dataset.from_dict({"sentence": ["a b", "b c"], "label": [[0, 1, 1], [1, 0, 0]]})
    batch = stacked(kind.examples(split, WORDS, 8))
    model = bert("SequenceClassification", num_labels=3, problem_type="multi_label_classification")
    _, loss, own = measured(kind, model, batch)
    assert loss == pytest.approx(own, rel=1e-5)
    true = torch.tensor([[False, True, True], [True, False, False]])
    guessed = torch.tensor([[False, True, False], [True, False, True]])
    metrics = kind.metrics(guessed, true, 0.0)
    assert metrics["accuracy"] == 0
    assert metrics["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_a_number():
    kind = get_kind("regression")
    split = Dataset.from_dict({"sentence": ["a b", "b c", "c a"], "label": [0.5, 2.5, 5]})
    batch = stacked(kind.examples(split, WORDS, 8))
    assert batch["labels"].dtype == torch.float32
    _, loss, own = measured(kind, bert("SequenceClassification", num_labels=1), batch)
    assert loss == pytest.approx(own, rel=1e-5)
    metrics = kind.metrics(torch.tensor([1.0, 2.0, 9.0]), batch["labels"], 0.0)
    by_hand = torch.corrcoef(torch.tensor([[1.0, 2.0, 9.0], [0.5, 2.5, 5.0]]))[0, 1]
    assert metrics["pearson"] == pytest.approx(by_hand.item())
    assert metrics["spearman"] == pytest.approx(1)
    assert metrics["mse"] == pytest.approx((0.25 + 0.25 + 16) / 3)
    same = kind.metrics(torch.ones(3), batch["labels"], 0.0)
    assert same["pearson"] != same["pearson"]  # no correlation with what does not vary


def test_a_tag_for_each_word_stands_at_its_first_token():
    kind = get_kind("tokens")
    split = Dataset.from_dict({"words": [["a", "bc", "d"]], "tags": [[1, 2, 0]]})
    (example,) = kind.examples(split, WORDS, 16)
    pieces = WORDS.convert_ids_to_tokens(example["input_ids"].tolist())
    assert pieces == ["[CLS]", "a", "b", "##c", "d", "[SEP]"]
    assert example["labels"].tolist() == [IGNORED, 1, 2, IGNORED, 0, IGNORED]
    metrics, loss, own = measured(
        kind, bert("TokenClassification", num_labels=3), stacked([example])
    )
    assert loss == pytest.approx(own, rel=1e-5)
    assert metrics["token_accuracy"] * 3 == pytest.approx(round(metrics["token_accuracy"] * 3))
    wrong = Dataset.from_dict({"words": [["a"]], "tags": [[1, 2]]})
    with pytest.raises(ValueError, match="row 0 has 1 words and 2 tags"):
        kind.examples(wrong, WORDS, 16)


def test_where_an_answer_is():
    kind = get_kind("spans")
    split = Dataset.from_dict(
        {
            "question": ["a", "a", "a"],
            "context": ["b cd a", "b cd a", "b cd a"],
            "answer": ["cd", "", "a"],
            "answer_start": [2, 0, 5],
        }
    )
    examples = kind.examples(split, WORDS, 16)
    # [CLS] a [SEP] b c ##d a [SEP]
    ends = [(e["start_positions"].item(), e["end_positions"].item()) for e in examples]
    assert ends == [(4, 5), (0, 0), (6, 6)]
    _, loss, own = measured(kind, bert("QuestionAnswering"), stacked(examples))
    assert loss == pytest.approx(own, rel=1e-5)
    cut = kind.examples(split.select([2]), WORDS, 7)
    assert cut[0]["start_positions"] == 0
    metrics = kind.metrics(torch.tensor([[4, 5], [1, 1]]), torch.tensor([[4, 5], [0, 3]]), 0.0)
    assert metrics == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 5) / 2)}


def test_no_answer_ends_before_it_starts():
    kind = get_kind("spans")
    output = transformers.modeling_outputs.QuestionAnsweringModelOutput(
        start_logits=torch.tensor([[0.0, 0.0, 5.0]]), end_logits=torch.tensor([[5.0, 0.0, 1.0]])
    )
    batch = {"start_positions": torch.tensor([0]), "end_positions": torch.tensor([0])}
    assert kind.score(output, batch).predicted.tolist() == [[2, 2]]


@pytest.mark.parametrize("name", ["causal-lm", "masked-lm", "seq2seq"])
def test_the_loss_of_tokens_is_the_models(name):
    kind = get_kind(name)
    split = Dataset.from_dict({"sentence": ["a b c d a b"] * 4, "target": ["d c"] * 4})
    examples = kind.examples(split, WORDS, 8)
    if name == "causal-lm":
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**SIZES | {"vocab_size": len(WORDS)}, intermediate_size=48)
        ).eval()
    elif name == "masked-lm":
        model = bert("MaskedLM")
    else:
        config = transformers.T5Config(
            vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            decoder_start_token_id=0,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config).eval()
    for example in examples[:2]:
        metrics, loss, own = measured(kind, model, stacked([example]))
        assert loss == pytest.approx(own, rel=1e-5)
        assert metrics["perplexity"] == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)
    again = kind.examples(split, WORDS, 8)
    for one, other in zip(examples, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_masked_text_hides_what_is_asked():
    split = Dataset.from_dict({"sentence": ["a b c d " * 10] * 20})
    examples = get_kind("masked-lm").examples(split, WORDS, 64)
    asked = torch.cat([example["labels"] != IGNORED for example in examples])
    shown = torch.cat([example["input_ids"] for example in examples])[asked]
    assert 0.13 < asked.float().mean() < 0.17
    assert 0.7 < (shown == WORDS.mask_token_id).float().mean() < 0.9


def test_an_embedding_is_the_mean_over_the_texts_own_tokens():
    kind = get_kind("embedding")
    states = torch.randn(2, 3, 4)
    batch = {
        "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "labels": torch.randn(2, 4),
    }
    output = BaseModelOutput(last_hidden_state=states)
    means = torch.stack([states[0, :2].mean(0), states[1].mean(0)])
    cosines = F.cosine_similarity(means, batch["labels"])
    scored = kind.score(output, batch)
    torch.testing.assert_close(scored.predicted, F.normalize(means))
    assert kind.loss(output, batch).item() == pytest.approx(1 - cosines.mean().item(), rel=1e-5)
    assert scored.loss / scored.count == pytest.approx(1 - cosines.mean().item(), rel=1e-5)
    metrics = kind.metrics(scored.predicted, scored.expected, 0.0)
    assert metrics == {"cosine": pytest.approx(cosines.mean().item()), "neighbours": 1}
    split = Dataset.from_dict({"sentence": ["a"], "vector": [[0.0, 1.0]]})
    assert kind.examples(split, WORDS, 8)[0]["labels"].tolist() == [0, 1]
    assert "labels" not in kind.examples(split.select_columns("sentence"), WORDS, 8)[0]


def test_neighbours_are_counted_as_by_brute_force(monkeypatch):
    monkeypatch.setattr("coalora_lib.kinds.embedding.ROWS", 4)  # in several pieces
    vectors, others = torch.randn(2, 9, 3).unbind()

    def nearest(each, row):
        cosines = {
            i: F.cosine_similarity(each[row], each[i], dim=0).item() for i in range(9) if i != row
        }
        return set(sorted(cosines, key=cosines.get)[-3:])

    shared = [len(nearest(vectors, row) & nearest(others, row)) for row in range(9)]
    assert neighbours_kept(vectors, others, 3) == pytest.approx(sum(shared) / 27)
    assert neighbours_kept(vectors, 5 * vectors, 3) == 1
    assert neighbours_kept(vectors, others) == 1  # all others are the ten nearest
    assert math.isnan(neighbours_kept(vectors[:1], others[:1]))


def test_what_a_model_cannot_give_as_targets_is_named():
    examples = [{"input_ids": torch.ones(3, dtype=torch.int64)}]
    with pytest.raises(ValueError, match="examples of kind 'spans' need start_positions, end_pos"):
        with_aims(tiny("bert"), examples, get_kind("spans"))


@pytest.mark.parametrize("name", kinds())
def test_a_missing_column_is_named(name):
    with pytest.raises(ValueError, match=rf"{name}.* needs a column .*; there are: review, stars"):
        get_kind(name).examples(Dataset.from_dict({"review": [""], "stars": [1]}), WORDS, 8)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (lambda: tiny("bert"), "single-label"),
        (lambda: bert("SequenceClassification", num_labels=1), "regression"),
        (
            lambda: bert(
                "SequenceClassification", num_labels=1, problem_type="multi_label_classification"
            ),
            "several-labels",
        ),
        (lambda: bert("TokenClassification"), "tokens"),
        (lambda: bert("QuestionAnswering"), "spans"),
        (lambda: bert("MaskedLM"), "masked-lm"),
        (lambda: tiny("llama"), "causal-lm"),
        (lambda: tiny("gpt2"), "causal-lm"),
        (lambda: transformers.BertModel(BERT), "embedding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_is_of_the_kind_of_its_class(made, name):
    assert kind_of(made()).name == name


def test_encoder_decoders_are_known_by_class_and_own_classes_by_what_they_extend():
    class Mine(transformers.BartForConditionalGeneration):
        pass

    config = transformers.BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
    )  # fmt: skip
    assert kind_of(Mine(config)).name == "seq2seq"
    with pytest.raises(ValueError, match="the kind of task of a Linear is not known; give kind="):
        kind_of(torch.nn.Linear(1, 1))


def test_names_are_known_or_the_nearest_is_said():
    with pytest.raises(
        ValueError, match=r"kind='singlelabel' is not known \(did you mean 'single-l"
    ):
        get_kind("singlelabel")


def test_a_name_is_taken_once():
    class Other(type(get_kind("spans"))):
        name = "tokens"

    with pytest.raises(ValueError, match="a kind named 'tokens' is registered: Tokens"):
        register_kind(Other())


def test_a_model_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="the model gave no loss"):
        get_kind("single-label").loss(SequenceClassifierOutput(logits=torch.ones(1, 2)), {})


def test_a_problem_that_is_not_known_is_named():
    model = tiny("bert")
    vars(model.config)["problem_type"] = "ranking"  # some versions check what is assigned
    with pytest.raises(ValueError, match="problem_type='ranking' of the model's config is not kn"):
        kind_of(model)
