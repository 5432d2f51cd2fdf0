"""Tokenized data in batches of similar length: short phrases waste little on padding."""

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

#: Batches sorted together: longer pools pad less, shorter ones mix the lengths more.
POOL = 16
#: Label of a token that no loss is counted for, as in transformers.
IGNORED = -100


def tokenize(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[dict[str, Tensor]]:
    """A split as examples: token tensors of their own length, and the label as "labels".

    The split has columns sentence and label, and second for tasks of text pairs. Texts of more
    than ``max_length`` tokens are cut.
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


def tokenize_blocks(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, length: int
) -> list[dict[str, Tensor]]:
    """A split's column sentence as examples for a causal language model, cut into blocks.

    All texts stand in a row, the end-of-sequence token between them, if there is one; what does not
    fill a block of ``length`` tokens at the end is dropped. input_ids, attention_mask and labels
    are (length,) each. ValueError if the texts do not fill one block.
    """
    between = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = tokenizer(list(split["sentence"]), add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([token for text in encoded for token in (*text, *between)])
    if len(tokens) < length:
        raise ValueError(f"{len(tokens)} tokens do not fill one block of {length}")
    return [
        {"input_ids": block, "attention_mask": torch.ones_like(block), "labels": block}
        for block in tokens[: len(tokens) // length * length].split(length)
    ]


def collate(
    examples: list[dict[str, Tensor]], pad_token: int, multiple: int = 1
) -> dict[str, Tensor]:
    """Stack examples, padded on the right to the longest, or on to a multiple of some length.

    Each (batch, length); labels (batch,), or as long, with -100 on the padding.
    """
    padding = {"input_ids": pad_token, "labels": IGNORED}
    batch = {}
    for name, first in examples[0].items():
        rows = [example[name] for example in examples]
        if first.ndim == 0:
            batch[name] = torch.stack(rows)
            continue
        fill = padding.get(name, 0)
        padded = torch.nn.utils.rnn.pad_sequence(rows, True, fill)
        batch[name] = torch.nn.functional.pad(padded, (0, -padded.shape[1] % multiple), value=fill)
    return batch


class ShuffledBatches:
    """Batches of ``size`` for ever, each epoch in a new order with lengths bucketed.

    The order depends on the seed and the epoch alone, so that epoch and position say where a run
    stands. ValueError if there are fewer examples than one batch.
    """

    def __init__(
        self,
        examples: list[dict[str, Tensor]],
        size: int,
        pad_token: int,
        seed: int,
        multiple: int = 1,
    ) -> None:
        if len(examples) < size:
            raise ValueError(f"{len(examples)} examples do not fill one batch of {size}")
        self.examples, self.size, self.pad_token, self.seed = examples, size, pad_token, seed
        self.multiple = multiple
        self.seek(0, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Go to a batch of an epoch, both counted from 0."""
        self.epoch, self.position = epoch, position
        self._order = self._order_of(epoch)

    def next_rows(self) -> list[int]:
        """The examples of the next batch."""
        if self.position == len(self._order):
            self.seek(self.epoch + 1, 0)
        self.position += 1
        return self._order[self.position - 1]

    def collate(self, rows: list[int]) -> dict[str, Tensor]:
        """The batch of these examples."""
        return collate([self.examples[row] for row in rows], self.pad_token, self.multiple)

    def _order_of(self, epoch: int) -> list[list[int]]:
        mixed = np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(mixed))
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        pool_size = POOL * self.size
        batches = []
        for start in range(0, len(order), pool_size):
            pool = order[start : start + pool_size]
            pool.sort(key=lambda row: len(self.examples[row]["input_ids"]))
            batches += [pool[i : i + self.size] for i in range(0, len(pool), self.size)]
        batches = [batch for batch in batches if len(batch) == self.size]
        shuffled = torch.randperm(len(batches), generator=generator)
        return [batches[i] for i in shuffled.tolist()]


def ordered_batches(
    examples: list[dict[str, Tensor]], size: int, pad_token: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Every example once, longest first: the rows of each batch, and the batch."""
    rows = sorted(range(len(examples)), key=lambda row: -len(examples[row]["input_ids"]))
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        yield part, collate([examples[row] for row in part], pad_token)
