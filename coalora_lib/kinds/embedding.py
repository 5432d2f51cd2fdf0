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


def mean_pooled(output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean of the last hidden states over a text's tokens: (batch, features)."""
    states = output.last_hidden_state
    mask = batch.get("attention_mask")
    if mask is None:
        return states.mean(1)
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class Embedding(TaskKind):
    """A vector for a text; labels are (features,) floating point, the vectors aimed at."""

    name = "embedding"
    auto_class = "AutoModel"
    columns = ("sentence", "vector")
    primary = "cosine"
    of_classes = False

    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """Columns sentence and vector."""
        require_columns(split, self.columns, self.name)
        encoded = tokenizer(list(split["sentence"]), truncation=True, max_length=max_length)
        examples = as_examples(encoded, len(split))
        for example, vector in zip(examples, split["vector"], strict=True):
            example["labels"] = torch.tensor(vector)
        return examples

    def training_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.inputs(batch)

    def loss(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        """1 - cosine, averaged over the batch."""
        return 1 - self._cosines(output, batch).mean()

    def outcome(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors of length one: half a squared distance between two is 1 - cosine."""
        return F.normalize(precise(mean_pooled(output, batch)), dim=-1)

    def score(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Scored:
        cosines = self._cosines(output, batch)
        total = (1 - cosines).sum().item()
        return Scored(total, len(cosines), cosines.cpu(), torch.ones(len(cosines)))

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """The mean cosine."""
        return {"cosine": torch.stack(list(predicted)).double().mean().item()}

    def _cosines(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        vectors = precise(mean_pooled(output, batch))
        return F.cosine_similarity(vectors, batch["labels"].to(vectors), dim=-1)
