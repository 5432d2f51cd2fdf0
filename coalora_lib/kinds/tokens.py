"""Labels inside a text: a tag for each word, or where an answer begins and ends."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from datasets import Dataset
from sklearn.metrics import f1_score
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from coalora_lib.kinds.kind import (
    IGNORED,
    Examples,
    Scored,
    TaskKind,
    Values,
    as_examples,
    precise,
    require_columns,
)


def counted_tokens(logits: Tensor, labels: Tensor) -> Scored:
    """Loss and predictions at every token that has a label.

    Args:
        logits: (batch, length, classes).
        labels: (batch, length), :data:`IGNORED` where nothing is to be predicted.
    """
    counted = labels != IGNORED
    per_row = counted.sum(1).tolist()
    logits, labels = precise(logits[counted]), labels[counted]
    total = F.cross_entropy(logits, labels, reduction="sum").item()
    guessed, true = logits.argmax(-1).cpu(), labels.cpu()
    return Scored(total, len(labels), guessed.split(per_row), true.split(per_row))


class CountedTokens(TaskKind):
    """Predictions at some tokens of a text, each of one class."""

    of_tokens = True
    #: Labels stand one token behind the logits that predict them.
    next_token = False

    def score(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Scored:
        return counted_tokens(*self._aligned(output.logits, batch["labels"]))

    def right(self, predicted: Values, expected: Values) -> Tensor:
        """Of all tokens in a row."""
        return torch.cat(list(predicted)) == torch.cat(list(expected))

    def share_right(self, predicted: Values, expected: Values) -> float:
        """How many of all tokens are right, 0 to 1."""
        return self.right(predicted, expected).double().mean().item()

    def distributions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """At the tokens that have a label."""
        logits, labels = self._aligned(logits, batch["labels"])
        return logits[labels != IGNORED]

    def _aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return (logits[:, :-1], labels[:, 1:]) if self.next_token else (logits, labels)


class Tokens(CountedTokens):
    """A tag for each word (tagging, named entities); labels are (length,) int64."""

    name = "tokens"
    auto_class = "AutoModelForTokenClassification"
    columns = ("words", "tags")
    primary = "token_accuracy"

    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """Columns words (a list of words each) and tags (their classes); a word's first token
        carries its tag.

        Raises:
            ValueError: the two of a row differ in number; the row is named.
        """
        require_columns(split, self.columns, self.name)
        words, tags = list(split["words"]), list(split["tags"])
        for row, (some, their) in enumerate(zip(words, tags, strict=True)):
            if len(some) != len(their):
                raise ValueError(f"row {row} has {len(some)} words and {len(their)} tags")
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
        examples = as_examples(encoded, len(split))
        for row, (example, their) in enumerate(zip(examples, tags, strict=True)):
            labels, before = [], None
            for word in encoded.word_ids(row):
                labels.append(IGNORED if word is None or word == before else their[word])
                before = word
            example["labels"] = torch.tensor(labels)
        return examples

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """The share of words with the right tag, and F1 averaged over the tags."""
        true, guessed = torch.cat(list(expected)), torch.cat(list(predicted))
        return {
            "token_accuracy": self.share_right(predicted, expected),
            "f1": float(f1_score(true, guessed, average="macro", zero_division=0)),
        }


class Spans(TaskKind):
    """An answer inside a text; start_positions and end_positions are () int64 each."""

    name = "spans"
    auto_class = "AutoModelForQuestionAnswering"
    columns = ("question", "context", "answer", "answer_start")
    primary = "f1"
    targets = ("start_positions", "end_positions")

    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """Columns question, context, answer (its text) and answer_start (its first character).

        An answer that was cut off, or an empty one, stands at token 0.
        """
        require_columns(split, self.columns, self.name)
        encoded = tokenizer(
            list(split["question"]),
            list(split["context"]),
            truncation="only_second",
            max_length=max_length,
            return_offsets_mapping=True,
        )
        offsets = encoded.pop("offset_mapping")
        examples = as_examples(encoded, len(split))
        for row, (example, answer, begin) in enumerate(
            zip(examples, split["answer"], split["answer_start"], strict=True)
        ):
            inside = [
                token
                for token, (part, (first, last)) in enumerate(
                    zip(encoded.sequence_ids(row), offsets[row], strict=True)
                )
                if part == 1 and first < begin + len(answer) and last > begin
            ]
            found = answer and inside and offsets[row][inside[-1]][1] >= begin + len(answer)
            example["start_positions"] = torch.tensor(inside[0] if found else 0)
            example["end_positions"] = torch.tensor(inside[-1] if found else 0)
        return examples

    def outcome(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        """Where an answer starts and ends, over the tokens of each text: (2 texts, length)."""
        both = precise(torch.cat([output.start_logits, output.end_logits]))
        if "attention_mask" in batch:
            padding = ~batch["attention_mask"].bool().repeat(2, 1)
            both = both.masked_fill(padding, torch.finfo(both.dtype).min)
        return both

    def score(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Scored:
        starts, ends = precise(output.start_logits), precise(output.end_logits)
        true = torch.stack([batch[name] for name in self.targets], dim=1)
        total = sum(
            F.cross_entropy(logits, true[:, side], reduction="sum")
            for side, logits in enumerate((starts, ends))
        )
        both = (starts[:, :, None] + ends[:, None, :]).triu()  # no end before its start
        both = both.masked_fill(torch.ones_like(both, dtype=torch.bool).tril(-1), -torch.inf)
        best = both.flatten(1).argmax(1)
        guessed = torch.stack([best // starts.shape[1], best % starts.shape[1]], dim=1)
        return Scored(float(total) / 2, len(true), guessed.cpu(), true.cpu())

    def right(self, predicted: Values, expected: Values) -> Tensor:
        return (torch.stack(list(predicted)) == torch.stack(list(expected))).all(1)

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """Both ends right, and F1 of the answers' tokens, averaged over the examples."""
        guessed, true = torch.stack(list(predicted)), torch.stack(list(expected))
        first, last = torch.maximum(guessed, true)[:, 0], torch.minimum(guessed, true)[:, 1]
        shared = (last - first + 1).clamp(min=0).double()
        lengths = (guessed[:, 1] - guessed[:, 0]) + (true[:, 1] - true[:, 0]) + 2
        return {
            "exact_match": (guessed == true).all(1).double().mean().item(),
            "f1": (2 * shared / lengths).mean().item(),
        }
