"""Labels of whole texts: one of several classes, several at once, or a number."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef
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


class LabelledTexts(TaskKind):
    """Texts, or pairs of texts, with labels."""

    auto_class = "AutoModelForSequenceClassification"
    columns = ("sentence", "label")
    label_dtype: torch.dtype

    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """Columns sentence and label, and second for pairs of texts."""
        require_columns(split, self.columns, self.name)
        texts = [list(split[name]) for name in ("sentence", "second") if name in split.column_names]
        examples = as_examples(
            tokenizer(*texts, truncation=True, max_length=max_length), len(split)
        )
        for example, label in zip(examples, split["label"], strict=True):
            example["labels"] = torch.tensor(label, dtype=self.label_dtype)
        return examples


class SingleLabel(LabelledTexts):
    """One of several classes; labels are () int64."""

    name = "single-label"
    primary = "accuracy"
    label_dtype = torch.int64

    def score(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Scored:
        logits, labels = precise(output.logits), batch["labels"]
        total = F.cross_entropy(logits, labels, reduction="sum").item()
        return Scored(total, len(labels), logits.argmax(-1).cpu(), labels.cpu())

    def right(self, predicted: Values, expected: Values) -> Tensor:
        return torch.stack(list(predicted)) == torch.stack(list(expected))

    def distributions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return logits

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """Accuracy, F1 averaged over the classes, and Matthews' correlation."""
        guessed, true = torch.stack(list(predicted)), torch.stack(list(expected))
        return {
            "accuracy": (guessed == true).double().mean().item(),
            "f1": float(f1_score(true, guessed, average="macro")),
            "matthews": float(matthews_corrcoef(true, guessed)),
        }


class SeveralLabels(LabelledTexts):
    """Any number of classes at once; labels are (classes,) float32 of zeros and ones."""

    name = "several-labels"
    primary = "f1"
    label_dtype = torch.float32

    def outcome(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        """Of each class of each text the logits of no and yes: (texts x classes, 2)."""
        yes = super().outcome(output, batch).reshape(-1)
        return torch.stack([torch.zeros_like(yes), yes], dim=-1)

    def score(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Scored:
        logits, labels = precise(output.logits), batch["labels"]
        each = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
        return Scored(
            each.mean(-1).sum().item(), len(labels), (logits > 0).cpu(), (labels > 0.5).cpu()
        )

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """F1 over all decisions and averaged over classes; the share of examples all right."""
        guessed, true = torch.stack(list(predicted)), torch.stack(list(expected))
        return {
            "f1": float(f1_score(true, guessed, average="micro", zero_division=0)),
            "f1_macro": float(f1_score(true, guessed, average="macro", zero_division=0)),
            "accuracy": (guessed == true).all(-1).double().mean().item(),
        }


class Regression(LabelledTexts):
    """One number, or several; labels are () or (targets,) float32."""

    name = "regression"
    primary = "pearson"
    of_classes = False
    label_dtype = torch.float32

    def score(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Scored:
        logits, labels = precise(output.logits), batch["labels"]
        predicted = logits.reshape(labels.shape)
        squares = (predicted - labels).square().reshape(len(labels), -1)
        return Scored(squares.mean(-1).sum().item(), len(labels), predicted.cpu(), labels.cpu())

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """Mean squared error, Pearson's and Spearman's correlation, averaged over the targets."""
        guessed, true = (
            torch.stack(list(values)).double().reshape(len(values), -1).T.numpy()
            for values in (predicted, expected)
        )
        pairs = list(zip(guessed, true, strict=True))
        return {
            "mse": float(((guessed - true) ** 2).mean()),
            "pearson": _mean_correlation(pearsonr, pairs),
            "spearman": _mean_correlation(spearmanr, pairs),
        }


def _mean_correlation(correlation, pairs) -> float:
    """NaN where one side does not vary: there is no correlation."""
    found = [
        float(correlation(guessed, true).statistic)
        if len(true) > 1 and guessed.std() > 0 and true.std() > 0
        else float("nan")
        for guessed, true in pairs
    ]
    return sum(found) / len(found)
