"""Texts as vectors, near those that another model gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from coalora_lib.kinds.kind import (
    Examples,
    Scored,
    TaskKind,
    Values,
    as_examples,
    precise,
    require_columns,
)

#: Of a text, whose neighbours are looked at: as many as a search shows on its first page.
NEIGHBOURS = 10
#: Texts whose cosines with all others are computed at a time.
ROWS = 1024


def mean_pooled(output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean of the last hidden states over a text's tokens: (batch, features)."""
    states = output.last_hidden_state
    mask = batch.get("attention_mask")
    if mask is None:
        return states.mean(1)
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def neighbours_kept(vectors: Tensor, others: Tensor, count: int = NEIGHBOURS) -> float:
    """The share of each text's nearest texts that are among its nearest by other vectors too.

    Args:
        vectors, others: (texts, features) each; near is what has a large cosine.
        count: of the nearest, without the text itself; all where there are fewer.

    Returns:
        0 to 1, the mean over the texts; NaN of a single text, which has no neighbours.
    """
    if len(vectors) < 2:
        return float("nan")
    count = min(count, len(vectors) - 1)
    first, second = _nearest(vectors, count), _nearest(others, count)
    shared = first[:, :, None] == second[:, None, :]
    return shared.any(-1).double().mean().item()


def _nearest(vectors: Tensor, count: int) -> Tensor:
    """(texts, count) positions of each text's nearest others."""
    unit = F.normalize(vectors, dim=-1)
    found = []
    for start in range(0, len(unit), ROWS):  # all cosines at once would be texts^2 numbers
        rows = unit[start : start + ROWS]
        own = torch.arange(len(rows))
        cosines = rows @ unit.T
        cosines[own, start + own] = -torch.inf
        found.append(cosines.topk(count).indices)
    return torch.cat(found)


class Embedding(TaskKind):
    """A vector for a text; labels are (features,) floating point, the vectors aimed at."""

    name = "embedding"
    auto_class = "AutoModel"
    columns = ("sentence",)
    primary = "cosine"
    of_classes = False

    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """Columns sentence, and vector; without that, examples have no labels yet."""
        require_columns(split, self.columns, self.name)
        encoded = tokenizer(list(split["sentence"]), truncation=True, max_length=max_length)
        examples = as_examples(encoded, len(split))
        if "vector" in split.column_names:
            for example, vector in zip(examples, split["vector"], strict=True):
                example["labels"] = torch.tensor(vector)
        return examples

    def training_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.inputs(batch)

    def loss(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        """1 - cosine, averaged over the batch."""
        vectors = self.outcome(output, batch)
        return 1 - _cosines(vectors, batch["labels"].to(vectors)).mean()

    def outcome(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors of length one: half a squared distance between two is 1 - cosine."""
        return F.normalize(precise(mean_pooled(output, batch)), dim=-1)

    def score(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Scored:
        vectors = self.outcome(output, batch)
        labels = batch["labels"].to(vectors)
        total = (1 - _cosines(vectors, labels)).sum().item()
        return Scored(total, len(labels), vectors.cpu(), labels.cpu())

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """The mean cosine, and the share of neighbours kept."""
        vectors, aims = torch.stack(list(predicted)), torch.stack(list(expected))
        return {
            "cosine": _cosines(vectors, aims).double().mean().item(),
            "neighbours": neighbours_kept(vectors, aims),
        }


def _cosines(vectors: Tensor, others: Tensor) -> Tensor:
    """Of (n, features) each with the other's: (n,)."""
    return F.cosine_similarity(vectors, others, dim=-1)
