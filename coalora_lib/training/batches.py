"""Tokenized data in batches of similar length: short phrases waste little on padding."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from coalora_lib.kinds import IGNORED, Examples

#: Batches sorted together: longer pools pad less, shorter ones mix the lengths more.
POOL = 16
#: An example's entries that may say how long it is, the first that it has.
LENGTHS = ("input_ids", "input_features", "input_values", "inputs_embeds")


def length_of(example: dict[str, Tensor]) -> int:
    """What examples are sorted by: tokens, or frames; 0 of those that are all alike."""
    return next((len(example[name]) for name in LENGTHS if name in example), 0)


def collate(examples: Examples, pad_token: int, multiple: int = 1) -> dict[str, Tensor]:
    """Stack examples; rows of integers and what differs in length are padded on the right.

    Tokens and their labels are (batch, length): padded to the longest, or on to a multiple of some
    length, labels with -100. Numbers, images and vectors are stacked as they are.

    Raises:
        ValueError: an example has other entries than the first, or another shape that no padding
            mends; it is named.
    """
    padding = {"input_ids": pad_token, "decoder_input_ids": pad_token, "labels": IGNORED}
    names, batch = examples[0].keys(), {}
    for number, example in enumerate(examples):
        if example.keys() != names:
            raise ValueError(
                f"example {number} of a batch has {sorted(example)}, the first {sorted(names)}"
            )
    for name, first in examples[0].items():
        rows = [example[name] for example in examples]
        tokens = first.ndim == 1 and not first.is_floating_point()
        if not tokens and all(row.shape == first.shape for row in rows):
            batch[name] = torch.stack(rows)
            continue
        if any(row.shape[1:] != first.shape[1:] or row.ndim != first.ndim for row in rows):
            shapes = sorted({tuple(row.shape) for row in rows})
            raise ValueError(f"{name} of a batch differs in shape beyond its length: {shapes}")
        fill = padding.get(name, 0)
        batch[name] = torch.nn.utils.rnn.pad_sequence(rows, True, fill)
        if tokens:
            further = -batch[name].shape[1] % multiple
            batch[name] = torch.nn.functional.pad(batch[name], (0, further), value=fill)
    return batch


class ShuffledBatches:
    """Batches of ``size`` for ever, each epoch in a new order with lengths bucketed.

    The order depends on the seed and the epoch alone, so that epoch and position say where a run
    stands. ValueError if there are fewer examples than one batch.
    """

    def __init__(
        self,
        examples: Examples,
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
        """Go to a batch of an epoch, both counted from 0; ValueError if it has fewer batches."""
        order = self._order_of(epoch)
        if position > len(order):
            raise ValueError(f"batch {position} of an epoch of {len(order)}")
        self.epoch, self.position, self._order = epoch, position, order

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
            pool.sort(key=lambda row: length_of(self.examples[row]))
            batches += [pool[i : i + self.size] for i in range(0, len(pool), self.size)]
        batches = [batch for batch in batches if len(batch) == self.size]
        shuffled = torch.randperm(len(batches), generator=generator)
        return [batches[i] for i in shuffled.tolist()]


def ordered_batches(
    examples: Examples, size: int, pad_token: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Every example once, longest first: the rows of each batch, and the batch."""
    rows = sorted(range(len(examples)), key=lambda row: -length_of(examples[row]))
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        yield part, collate([examples[row] for row in part], pad_token)
