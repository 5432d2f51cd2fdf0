"""Shared fixtures: every test starts from one seed; the model is real, tiny and made here."""

import pytest
import torch
import transformers
from datasets import Dataset
from transformers.pytorch_utils import Conv1D

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import adaptable_layers


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tiny tensors: more threads only get in each other's way


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
#: Tiny models of real architectures: two blocks, every bias other than zero.
TINY = {
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, **NO_DROPOUT, intermediate_size=48)
    ),
    "roberta": lambda: transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**SIZES, **NO_DROPOUT, intermediate_size=48)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, intermediate_size=48)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SIZES, intermediate_size=48, num_key_value_heads=1)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=32,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0)
    ),
}


def tiny(kind: str) -> transformers.PreTrainedModel:
    """A model of :data:`TINY`, the same one at every call."""
    torch.manual_seed(0)
    model = TINY[kind]()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def tiny_bert() -> transformers.BertForSequenceClassification:
    """Two blocks, 12 linear layers inside them, in float64."""
    return tiny("bert").double()


def some_means(base) -> dict[str, torch.Tensor]:
    """Made-up mean inputs of every adaptable layer."""
    layers = {name: base.get_submodule(name) for name in adaptable_layers(base)}
    return {
        name: torch.randn(layer.weight.shape[0 if isinstance(layer, Conv1D) else 1])
        for name, layer in layers.items()
    }


#: What makes a profile as small as one that does all a run does.
SMALLEST = {
    "train_examples": 16,
    "validation_examples": 8,
    "scoring_examples": 8,
    "training_budgets": (2.5, 4.0),
    "random_configurations": 1,
}


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
