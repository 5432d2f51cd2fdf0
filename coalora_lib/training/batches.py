"""Tokenized data in batches of similar length: short phrases waste little on padding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

#: Batches sorted together: longer pools pad less, shorter ones mix the lengths more.
POOL = 16


def tokenize(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[dict[str, Tensor]]:
    """A split as examples: token tensors of their own length, and the label as "labels".

    Args:
        split: with columns sentence and label, and second for tasks of text pairs.
        tokenizer: of the model that will read them.
        max_length: longer texts are cut, in tokens.
    """
    texts = [list(split[name]) for name in ("sentence", "second") if name in split.column_names]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    examples = [
        {name: torch.tensor(column[i]) for name, column in encoded.items()}
        for i in range(len(split))
    ]
    for example, label in zip(examples, split["label"], strict=True):
        example["labels"] = torch.tensor(label)
    return examples


def collate(examples: list[dict[str, Tensor]], pad_token: int) -> dict[str, Tensor]:
    """Stack examples, padded on the right to the longest: each (batch, length), labels (batch,)."""
    padding = {"input_ids": pad_token}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(
            [example[name] for example in examples],
            batch_first=True,
            padding_value=padding.get(name, 0),
        )
        for name in examples[0]
        if name != "labels"
    }
    batch["labels"] = torch.stack([example["labels"] for example in examples])
    return batch


def shuffled_batches(
    examples: list[dict[str, Tensor]], size: int, pad_token: int, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Batches for ever, epoch after epoch, each epoch in a new order with lengths bucketed.

    Raises:
        ValueError: there are fewer examples than one batch.
    """
    if len(examples) < size:
        raise ValueError(f"{len(examples)} examples do not fill one batch of {size}")
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        pools = [order[i : i + POOL * size] for i in range(0, len(order), POOL * size)]
        batches = []
        for pool in pools:
            pool.sort(key=lambda row: len(examples[row]["input_ids"]))
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        batches = [batch for batch in batches if len(batch) == size]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield collate([examples[row] for row in batches[i]], pad_token)


def ordered_batches(
    examples: list[dict[str, Tensor]], size: int, pad_token: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Every example once, longest first: the rows of each batch, and the batch."""
    rows = sorted(range(len(examples)), key=lambda row: -len(examples[row]["input_ids"]))
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        yield part, collate([examples[row] for row in part], pad_token)
