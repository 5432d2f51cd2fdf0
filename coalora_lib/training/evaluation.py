"""Accuracy, loss and perplexity under a configuration."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from coalora_lib.adapter.resolving import ConfigurationLike
from coalora_lib.training.batches import IGNORED, ordered_batches

Examples = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """How a model does on some examples."""

    accuracy: float  #: 0 to 1; of a causal model, the share of tokens predicted first
    loss: float  #: mean cross-entropy in nats, over examples or predicted tokens
    correct: Tensor  #: (examples,) bool in their order; of a causal model, (tokens,)
    of_tokens: bool = False  #: it is a causal model's

    @property
    def perplexity(self) -> float:
        """exp(loss): the metric of language models."""
        return math.exp(self.loss)


def evaluate(
    model: nn.Module,
    examples: Examples,
    configuration: ConfigurationLike | None = None,
    batch_size: int = 64,
) -> Evaluation:
    """A model's accuracy and loss, under a configuration if it is a CoaLora.

    The model is left in evaluation mode, with the configuration set; None is the current one.
    """
    return next(evaluate_each(model, examples, [configuration], batch_size))


def evaluate_each(
    model: nn.Module,
    examples: Examples,
    configurations: Iterable[ConfigurationLike | None],
    batch_size: int = 64,
) -> Iterator[Evaluation]:
    """:func:`evaluate` under one configuration after another; the batches are made once."""
    accelerator = new_accelerator()
    model.to(accelerator.device)
    batches = [
        (rows, {name: tensor.to(accelerator.device) for name, tensor in batch.items()})
        for rows, batch in ordered_batches(examples, batch_size, pad_token_of(model))
    ]
    model.eval()
    for configuration in configurations:
        if model.training:  # by whoever takes the results; eval walks through every module
            model.eval()
        if configuration is not None:
            model.set_configuration(configuration)
        yield _evaluate(model, batches, accelerator)


@torch.no_grad()
def _evaluate(
    model: nn.Module, batches: list[tuple[list[int], dict[str, Tensor]]], accelerator: Accelerator
) -> Evaluation:
    correct: dict[int, Tensor] = {}
    total, count = 0.0, 0
    for rows, batch in batches:
        labels = batch["labels"]
        with accelerator.autocast():
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        per_row = [1] * len(rows)
        if logits.ndim == 3:
            per_row = (labels[:, 1:] >= 0).sum(1).tolist()
            logits, labels = next_token_logits(logits, labels)
        logits = logits.double() if logits.dtype == torch.float64 else logits.float()
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        count += len(labels)
        right = (logits.argmax(-1) == labels).cpu()
        for row, part in zip(rows, right.split(per_row), strict=True):
            correct[row] = part
    joined = torch.cat([correct[row] for row in sorted(correct)])
    of_tokens = batches[0][1]["labels"].ndim == 2
    return Evaluation(joined.double().mean().item(), total / count, joined, of_tokens)


def next_token_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A causal model's predictions and what they are of, without padding.

    (batch, length, vocabulary) and (batch, length), the tokens, IGNORED where none is to be
    predicted, to (predictions, vocabulary) and (predictions,).
    """
    targets = labels[:, 1:]
    counted = targets != IGNORED
    return logits[:, :-1][counted], targets[counted]


def new_accelerator() -> Accelerator:
    """Devices and precision: bfloat16 autocast on a GPU that has it, else the parameters' own."""
    gpu = torch.cuda.is_available()
    bfloat16 = gpu and torch.cuda.is_bf16_supported()
    return Accelerator(mixed_precision="bf16" if bfloat16 else "no", cpu=not gpu)


def pad_token_of(model: nn.Module) -> int:
    """The id the model's tokenizer pads with."""
    return model.config.pad_token_id or 0
