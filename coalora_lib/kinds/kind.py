"""What a task kind is: examples from texts, a loss, and metrics by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

#: Tokenized examples: each the model's arguments by name, and what is to be predicted.
Examples = list[dict[str, Tensor]]
#: Label of a token that no loss is counted for, as in transformers.
IGNORED = -100


#: One tensor for each example, stacked if all are of one shape.
Values = Sequence[Tensor] | Tensor


@dataclass(frozen=True)
class Scored:
    """The loss and the outcomes of a batch.

    Attributes:
        loss: summed over ``count`` predictions.
        count: how many: examples, or tokens.
        predicted, expected: of each example, of one shape in the two.
    """

    loss: float
    count: int
    predicted: Values
    expected: Values


class TaskKind(ABC):
    """One kind of task.

    Attributes:
        name: such as "single-label".
        auto_class: the class of transformers that loads a model for it.
        columns: of a data set, as :meth:`examples` reads them.
        primary: the metric that models are compared by; larger is better unless it is in
            :attr:`LOWER`.
        targets: names of an example's entries that are to be predicted.
        gives_targets: whether the model is to see them: to make a decoder's inputs.
        of_tokens: predictions are of tokens, not of examples.
        of_classes: outcomes are logits of distributions over classes; else they are vectors.
    """

    #: Metrics of which less is better.
    LOWER: ClassVar[frozenset[str]] = frozenset({"loss", "perplexity", "mse"})

    name: ClassVar[str]
    auto_class: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    primary: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ("labels",)
    gives_targets: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = False
    of_classes: ClassVar[bool] = True

    @abstractmethod
    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """A split as tokenized examples.

        Args:
            split: with :attr:`columns`.
            tokenizer: of the model that will read them.
            max_length: in tokens; longer texts are cut.
        """

    def loss(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss to train on, scalar: the model's own.

        Raises:
            ValueError: the model gave none.
        """
        loss = getattr(output, "loss", None)
        if loss is None:
            raise ValueError(
                f"the model gave no loss for {sorted(batch)}; allowed: examples with "
                f"{', '.join(self.targets)}, or loss= of your own"
            )
        return loss

    @abstractmethod
    def score(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Scored:
        """Loss and predictions of a batch, of an output without the targets seen."""

    @abstractmethod
    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """Metrics by name over all examples; ``loss`` is their mean loss."""

    def right(self, predicted: Values, expected: Values) -> Tensor | None:
        """Which predictions are right, bool, in order; None where that means nothing."""
        return None

    def distributions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits whose distributions distillation compares: (predictions, classes).

        Raises:
            ValueError: the kind predicts no distributions over classes.
        """
        raise ValueError(f"distillation is not for tasks of kind {self.name!r}")

    def outcome(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        """The outputs of a model for a batch, with or without labels, for :meth:`divergence`.

        (predictions, classes) logits, by default of every text or of every token but padding; or
        (predictions, features) vectors.

        Raises:
            ValueError: the model gives no logits.
        """
        logits = getattr(output, "logits", None)
        if logits is None:
            raise ValueError(
                f"a {self.name} model gave {', '.join(output)}, and no logits to compare"
            )
        if logits.ndim == 3 and "attention_mask" in batch:
            logits = logits[batch["attention_mask"].bool()]
        return precise(logits).reshape(-1, logits.shape[-1])

    def divergence(self, outcome: Tensor, target: Tensor) -> Tensor:
        """How far outcomes are from another model's, a mean over predictions.

        Of distributions KL(target || outcome), in nats; of vectors half the squared distance.
        """
        if not self.of_classes:
            return (outcome - target).square().sum(-1).mean() / 2
        both = outcome.log_softmax(-1), target.log_softmax(-1)
        return F.kl_div(*both, reduction="batchmean", log_target=True)

    def drawn(self, outcome: Tensor, generator: torch.Generator) -> Tensor:
        """A random scalar s whose gradients show which parts of an outcome matter.

        For each prediction the second derivative of :meth:`divergence` at its least is
        E[grad s grad s^T]: s is the log-likelihood of a class drawn from the model's own
        distribution (Fisher information), or the product with a normal vector. The generator is
        the processor's.
        """
        if not self.of_classes:
            drawn = torch.randn(outcome.shape, generator=generator, dtype=torch.float64)
            return (outcome * drawn.to(outcome)).sum()
        logs = outcome.log_softmax(-1)
        uniform = torch.rand(len(logs), 1, generator=generator, dtype=torch.float64)
        reached = logs.detach().exp().cumsum(-1) < uniform.to(logs)
        chosen = reached.sum(-1, keepdim=True).clamp(max=logs.shape[-1] - 1)
        return logs.gather(-1, chosen).sum()

    def check(self, model: nn.Module) -> None:
        """Nothing, if the transformers model can be trained for this and measured by it.

        Raises:
            ValueError: it cannot.
        """
        return None

    def aimed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch as :meth:`loss` and :meth:`score` need it: with targets that its examples lack.

        Asked once for a batch, whatever the model's configurations, and under autocast as it is.
        """
        return dict(batch)

    def training_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a batch that a model in training gets: all, for its own loss."""
        return dict(batch)

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a batch that a model in evaluation gets."""
        if self.gives_targets:
            return dict(batch)
        return {name: value for name, value in batch.items() if name not in self.targets}


def require_columns(split: Dataset, columns: Sequence[str], kind: str) -> None:
    """Refuse a data set without some columns.

    Raises:
        ValueError: the first missing one is named, and those that there are.
    """
    for name in columns:
        if name not in split.column_names:
            raise ValueError(
                f"a task of kind {kind!r} needs a column {name!r}; there are: "
                f"{', '.join(split.column_names)}"
            )


def as_examples(encoded: Mapping[str, Any], count: int) -> Examples:
    """A tokenizer's columns as ``count`` examples, each of its own length."""
    return [
        {name: torch.tensor(column[i]) for name, column in encoded.items()} for i in range(count)
    ]


def precise(logits: Tensor) -> Tensor:
    """At least float32, for sums over many predictions."""
    return logits if logits.dtype == torch.float64 else logits.float()
