"""A small decoder of LLaMA's architecture over the generated phrases, to be trained from scratch.

It stands in for a pre-trained language model where no hub is at hand; its perplexities say
nothing about real text.
"""

from __future__ import annotations

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from coalora_lib.tasks.models import Pretrained

PAD, UNKNOWN, END = "<pad>", "<unk>", "</s>"


def small_decoder(texts: Dataset, seed: int = 0, dtype: torch.dtype = torch.float32) -> Pretrained:
    """An untrained decoder of four blocks, 64 wide, with one token for each word of some texts.

    Args:
        texts: with a column sentence; its words become the vocabulary.
        seed: of the weights.
        dtype: of the parameters.
    """
    words = sorted({word for text in texts["sentence"] for word in text.split()})
    vocabulary = {word: i for i, word in enumerate([PAD, UNKNOWN, END, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
        )
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, eos_token=END
    )
    return Pretrained(model.to(dtype), fast)
