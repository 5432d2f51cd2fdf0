"""Shared fixtures: every test starts from one seed; the model is real, tiny and made here."""

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

from coalora_lib.adapter import CoaLora


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tiny tensors: more threads only get in each other's way


def tiny_bert() -> BertForSequenceClassification:
    """Two blocks, 12 linear layers inside them, all with biases that are not zero."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.double()


@pytest.fixture
def base_model():
    return tiny_bert()


@pytest.fixture
def model():
    return CoaLora.attach(tiny_bert(), rank=4, alpha=8)


@pytest.fixture
def examples():
    """Forty sequences of 3 to 10 tokens; the label is whether token 5 occurs."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(40):
        length = int(torch.randint(3, 11, (), generator=generator))
        tokens = torch.randint(6, 64, (length,), generator=generator)
        if i % 2:
            tokens[0] = 5
        ones = torch.ones_like(tokens)
        made.append({"input_ids": tokens, "attention_mask": ones, "labels": torch.tensor(i % 2)})
    return made


@pytest.fixture
def reviews():
    return Dataset.from_dict({"sentence": ["a fine film", "dull"], "label": [1, 0]})
