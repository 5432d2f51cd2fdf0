"""How well the cosines of embeddings agree with people's scores of similarity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.stats import spearmanr

from coalora_lib.kinds import Examples, Values


class ScoredPairs(NamedTuple):
    """Pairs of texts with their scores.

    Attributes:
        examples: the first texts of all pairs, then the second ones.
        scores: of each pair; more is more alike.
    """

    examples: Examples
    scores: Sequence[float]

    @classmethod
    def of(cls, pairs: Dataset, examples: Callable[[Dataset], Examples]) -> Self:
        """From columns sentence, second and score, and what makes examples of sentences."""
        texts = Dataset.from_dict({"sentence": [*pairs["sentence"], *pairs["second"]]})
        return cls(examples(texts), list(pairs["score"]))

    def correlation(self, vectors: Values) -> float | None:
        """Spearman's of the pairs' cosines with their scores, -1 to 1.

        ``vectors`` are one for each of :attr:`examples`. None where either does not vary, or a
        vector is not finite.
        """
        first, second = torch.stack(list(vectors)).chunk(2)
        cosines = F.cosine_similarity(first, second, dim=-1)
        found = float(spearmanr(cosines.numpy(), self.scores).statistic)
        return None if math.isnan(found) else found
