"""Texts to be continued, filled in, or turned into other texts."""

from __future__ import annotations

import math

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from coalora_lib.kinds.kind import (
    IGNORED,
    Examples,
    Values,
    as_examples,
    require_columns,
)
from coalora_lib.kinds.tokens import CountedTokens

#: Of the tokens of a masked language model's examples, those to be predicted, and of these the
#: shares that become the mask and another token (BERT, arXiv 1810.04805, section 3.1).
MASKED, BECOME_MASK, BECOME_OTHER = 0.15, 0.8, 0.1


class CausalLanguageModel(CountedTokens):
    """The next token; labels are (length,) int64, the tokens themselves."""

    name = "causal-lm"
    auto_class = "AutoModelForCausalLM"
    columns = ("sentence",)
    primary = "perplexity"
    next_token = True

    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """All texts in a row, the end-of-sequence token between them if there is one, in blocks of
        ``max_length``; what is left over at the end is dropped.

        Raises:
            ValueError: the texts do not fill one block.
        """
        require_columns(split, self.columns, self.name)
        between = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        encoded = tokenizer(list(split["sentence"]), add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([token for text in encoded for token in (*text, *between)])
        if len(tokens) < max_length:
            raise ValueError(f"{len(tokens)} tokens do not fill one block of {max_length}")
        return [
            {"input_ids": block, "attention_mask": torch.ones_like(block), "labels": block}
            for block in tokens[: len(tokens) // max_length * max_length].split(max_length)
        ]

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """Perplexity, and the share of tokens predicted first."""
        return {
            "perplexity": perplexity(loss),
            "token_accuracy": self.share_right(predicted, expected),
        }


class MaskedLanguageModel(CausalLanguageModel):
    """Tokens that were masked; labels are (length,) int64, IGNORED elsewhere."""

    name = "masked-lm"
    auto_class = "AutoModelForMaskedLM"
    next_token = False

    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """One example a text, masked once and the same way at every call, at least one token each.

        Raises:
            ValueError: the tokenizer has no mask, or a text has no tokens; its row is named.
        """
        require_columns(split, self.columns, self.name)
        if tokenizer.mask_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no mask token")
        encoded = tokenizer(
            list(split["sentence"]),
            truncation=True,
            max_length=max_length,
            return_special_tokens_mask=True,
        )
        special = encoded.pop("special_tokens_mask")
        examples = as_examples(encoded, len(split))
        generator = torch.Generator().manual_seed(0)
        for row, example in enumerate(examples):
            free = (torch.tensor(special[row]) == 0).nonzero()[:, 0]
            if len(free) == 0:
                raise ValueError(f"row {row} has no tokens to mask")
            count = max(1, round(MASKED * len(free)))
            chosen = free[torch.randperm(len(free), generator=generator)[:count]]
            tokens = example["input_ids"]
            example["labels"] = torch.full_like(tokens, IGNORED)
            example["labels"][chosen] = tokens[chosen]
            fate = torch.rand(count, generator=generator)
            tokens[chosen[fate < BECOME_MASK]] = tokenizer.mask_token_id
            other = chosen[(fate >= BECOME_MASK) & (fate < BECOME_MASK + BECOME_OTHER)]
            tokens[other] = torch.randint(len(tokenizer), (len(other),), generator=generator)
        return examples


class SequenceToSequence(CountedTokens):
    """Another text; labels are (target length,) int64."""

    name = "seq2seq"
    auto_class = "AutoModelForSeq2SeqLM"
    columns = ("sentence", "target")
    primary = "perplexity"
    gives_targets = True

    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """Columns sentence and target."""
        require_columns(split, self.columns, self.name)
        cut = {"truncation": True, "max_length": max_length}
        examples = as_examples(tokenizer(list(split["sentence"]), **cut), len(split))
        targets = tokenizer(text_target=list(split["target"]), **cut)["input_ids"]
        for example, target in zip(examples, targets, strict=True):
            example["labels"] = torch.tensor(target)
        return examples

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """Perplexity; the share of tokens predicted first, and of targets all of whose tokens are:
        those that greedy decoding gives, since each is predicted from the true ones before it."""
        exact = [torch.equal(p, e) for p, e in zip(predicted, expected, strict=True)]
        return {
            "perplexity": perplexity(loss),
            "token_accuracy": self.share_right(predicted, expected),
            "exact_match": sum(exact) / len(exact),
        }


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
