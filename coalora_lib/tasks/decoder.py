"""A small LLaMA to be trained, where no pre-trained language model is at hand."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from coalora_lib.kinds.kind import IGNORED
from coalora_lib.tasks.models import Pretrained


def small_decoder(texts: Dataset, seed: int = 0, dtype: torch.dtype = torch.float32) -> Pretrained:
    """An untrained LLaMA of four blocks, 64 wide, with a token for each word in column sentence.

    It replaces a pre-trained language model where there is no hub. Its perplexities say nothing
    about real text. In float64 all of it computes in float64: then the digits that are printed of
    it do not depend on the processor's instructions.
    """
    words = sorted({word for text in texts["sentence"] for word in text.split()})
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    vocabulary = {word: i for i, word in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    # Drawn in dtype: the normal numbers of float32 depend on the processor too.
    model = AutoModelForCausalLM.from_config(
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
        ),
        dtype=dtype,
    )
    if dtype == torch.float64:
        _compute_in_float64(model)
    return Pretrained(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special))


def _compute_in_float64(model: LlamaForCausalLM) -> None:
    """Replace what transformers computes in float32 whatever the weights are."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            norm = nn.RMSNorm(len(module.weight), module.variance_epsilon, dtype=torch.float64)
            norm.load_state_dict(module.state_dict())
            model.set_submodule(name, norm)
    frequencies = model.model.rotary_emb.inv_freq.double()
    model.model.rotary_emb = _Rotations(frequencies)
    model.loss_function = _next_token_loss


class _Rotations(nn.Module):
    """Cosine and sine of each position times each frequency, as LLaMA's, in float64."""

    frequencies: Tensor  #: (head width / 2,)

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, length) positions to two of (batch, length, head width)."""
        angles = position_ids[..., None] * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def _next_token_loss(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
    """Mean cross-entropy of (batch, length, words) logits and the tokens that come next."""
    following = labels[:, 1:].reshape(-1)
    return nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, vocab_size), following, ignore_index=IGNORED
    )
