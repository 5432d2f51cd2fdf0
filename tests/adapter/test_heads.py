"""What is trained in full: found by the checkpoint, by place, or named."""

import warnings

import pytest
import torch
import transformers
from torch import nn

from coalora_lib.adapter.heads import (
    find_heads,
    fresh_parameters,
    named_heads,
    warn_of_random_parts,
)
from tests.conftest import NO_DROPOUT, SIZES, tiny

BERT = transformers.BertConfig(**SIZES, **NO_DROPOUT, intermediate_size=48)
BART = transformers.BartConfig(
    vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
)  # fmt: skip
DISTILBERT = transformers.DistilBertConfig(
    vocab_size=64, dim=32, n_layers=2, n_heads=2, hidden_dim=48
)
VIT = transformers.ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=8,
    patch_size=4, num_labels=3,
)  # fmt: skip


class OwnHead(transformers.BertPreTrainedModel):
    """A pre-trained encoder in a model of one's own."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder_model = transformers.BertModel(config, add_pooling_layer=False)
        self.my_head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
        self.post_init()


@pytest.mark.parametrize(
    ("made", "heads"),
    [
        (lambda: tiny("bert"), ["bert.pooler", "classifier"]),
        (lambda: transformers.BertForQuestionAnswering(BERT), ["qa_outputs"]),
        (lambda: transformers.BertForMaskedLM(BERT), []),
        (
            lambda: transformers.DistilBertForSequenceClassification(DISTILBERT),
            ["pre_classifier", "classifier"],
        ),
        (lambda: transformers.BartForSequenceClassification(BART), ["classification_head"]),
        (lambda: transformers.BartForConditionalGeneration(BART), []),
        (lambda: transformers.ViTForImageClassification(VIT), ["classifier"]),
        (lambda: tiny("llama"), []),
        (lambda: tiny("gpt2"), []),
    ],
    ids=lambda value: " ".join(value) or "none" if isinstance(value, list) else "",
)
def test_heads_are_found_by_their_place(made, heads):
    assert find_heads(made()) == heads


def test_what_a_checkpoint_lacked_is_found(tmp_path):
    transformers.BertModel(BERT, add_pooling_layer=False).save_pretrained(tmp_path)
    classifier = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert find_heads(classifier) == ["bert.pooler", "classifier"]
    assert "bert.pooler.dense.weight" in fresh_parameters(classifier)
    masked = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    assert find_heads(masked) == ["cls.predictions.transform"]
    with pytest.warns(UserWarning, match=r"cls\.predictions\.bias: the checkpoint does not have"):
        warn_of_random_parts(masked, find_heads(masked))


def test_a_head_of_ones_own_is_found_beside_a_loaded_encoder(tmp_path):
    transformers.BertModel(BERT, add_pooling_layer=False).save_pretrained(tmp_path)
    own = OwnHead(BERT)
    own.encoder_model = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert find_heads(own) == ["my_head"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_random_parts(own, ["my_head"])
    with pytest.warns(
        UserWarning, match=r"my_head\.0\.weight and 3 more: the checkpoint does not have"
    ):
        warn_of_random_parts(own, [])


def test_named_parts_are_taken_whole_and_unknown_ones_are_named():
    model = tiny("bert")
    assert named_heads(model, ["pooler"]) == ["bert.pooler"]
    assert named_heads(model, ["bert.pooler.dense", "bert.pooler", "classifier"]) == [
        "bert.pooler",
        "classifier",
    ]
    with pytest.raises(
        ValueError, match=r"no part 'head' with parameters; .* bert, dropout, class"
    ):
        named_heads(model, ["head"])
    with pytest.raises(ValueError, match="no part 'dropout' with parameters"):
        named_heads(model, ["dropout"])


def test_a_converted_model_keeps_its_marks(tmp_path):
    transformers.BertModel(BERT).save_pretrained(tmp_path)
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path).double()
    assert fresh_parameters(model) == ["classifier.weight", "classifier.bias"]
    assert find_heads(model) == ["bert.pooler", "classifier"]
    assert torch.float64 in {p.dtype for p in model.parameters()}
