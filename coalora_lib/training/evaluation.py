"""Loss and metrics under a configuration."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.resolving import ConfigurationLike
from coalora_lib.kinds import Examples, Loss, TaskKind, Values, objective_of
from coalora_lib.training.batches import length_of, ordered_batches

#: The most examples that a CPU takes at a time: what they pass through stays in its cache, and
#: short batches pad less. 256 phrases in float64 took 4.1 s in one batch and 1.9 s in eight.
CPU_BATCH = 32
#: The most logits over a vocabulary that an evaluation has at a time: 2 GiB in float32, and a loss
#: takes several times that. Of 256 texts of 1,024 tokens, Qwen2.5's would be 160 GB.
MOST_LOGITS = 2**29


@dataclass(frozen=True)
class Evaluation:
    """How a model does on some examples; metrics are computed when they are asked for."""

    loss: float  #: mean over examples, or over predicted tokens
    objective: TaskKind
    predicted: Values = field(repr=False)
    expected: Values = field(repr=False)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """By name, the loss among them."""
        found = self.objective.metrics(self.predicted, self.expected, self.loss)
        return {"loss": self.loss} | found

    @property
    def primary(self) -> str:
        """The name of the metric that models are compared by."""
        return self.objective.primary

    @property
    def value(self) -> float:
        """The primary metric."""
        return self.metrics[self.primary]

    @cached_property
    def correct(self) -> Tensor:
        """(examples,) bool in their order, or (tokens,) of them in a row.

        Raises:
            ValueError: predictions of this kind are not right or wrong.
        """
        right = self.objective.right(self.predicted, self.expected)
        if right is None:
            raise ValueError(
                f"the predictions of a {self.objective.name} model are not right or wrong"
            )
        return right

    @property
    def accuracy(self) -> float:
        """Share of right predictions, of examples or of tokens."""
        return self._metric("token_accuracy" if self.objective.of_tokens else "accuracy")

    @property
    def perplexity(self) -> float:
        """exp(loss), of language models."""
        return self._metric("perplexity")

    def _metric(self, name: str) -> float:
        if name not in self.metrics:
            raise AttributeError(f"{name} was not measured; there are: {', '.join(self.metrics)}")
        return self.metrics[name]


def evaluate(
    model: nn.Module,
    examples: Examples,
    configuration: ConfigurationLike | None = None,
    batch_size: int = 64,
    *,
    kind: str | TaskKind | None = None,
    loss: Loss | None = None,
) -> Evaluation:
    """A model's loss and metrics, under a configuration if it is a CoaLora.

    The model is left in evaluation mode, with the configuration set; None is the current one.
    ``kind`` and ``loss`` are as :func:`~coalora_lib.kinds.objective_of` takes them.

    Raises:
        ValueError: there are no examples.
    """
    return next(evaluate_each(model, examples, [configuration], batch_size, kind=kind, loss=loss))


def evaluate_each(
    model: nn.Module,
    examples: Examples,
    configurations: Iterable[ConfigurationLike | None],
    batch_size: int = 64,
    *,
    kind: str | TaskKind | None = None,
    loss: Loss | None = None,
) -> Iterator[Evaluation]:
    """:func:`evaluate` under one configuration after another; the batches are made once.

    A CPU takes at most :data:`CPU_BATCH` examples at a time, and a language model as many as have
    :data:`MOST_LOGITS`.
    """
    if not len(examples):
        raise ValueError("there are no examples to evaluate on")
    objective = objective_of(transformers_model(model), kind, loss)
    accelerator = new_accelerator()
    model.to(accelerator.device)
    if accelerator.device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    if objective.of_tokens:
        batch_size = min(batch_size, _most_at_a_time(model, examples))
    batches = [
        (rows, {name: tensor.to(accelerator.device) for name, tensor in batch.items()})
        for rows, batch in ordered_batches(examples, batch_size, pad_token_of(model))
    ]
    for configuration in configurations:
        if model.training:  # at first, or by whoever takes the results
            model.eval()
        if configuration is not None:
            model.set_configuration(configuration)
        yield _evaluate(model, batches, accelerator, objective)


def _most_at_a_time(model: nn.Module, examples: Examples) -> int:
    """Examples that together have :data:`MOST_LOGITS`, at least one; all without a vocabulary."""
    output = transformers_model(model).get_output_embeddings()
    if output is None:
        return len(examples)
    longest = max(len(each["labels"]) if "labels" in each else length_of(each) for each in examples)
    return max(1, MOST_LOGITS // max(1, longest * len(output.weight)))


@torch.no_grad()
def _evaluate(
    model: nn.Module,
    batches: list[tuple[list[int], dict[str, Tensor]]],
    accelerator: Accelerator,
    objective: TaskKind,
) -> Evaluation:
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    total, count = 0.0, 0
    for rows, batch in batches:
        with accelerator.autocast():
            output = model(**objective.inputs(batch))
            aimed = objective.aimed(batch)
        scored = objective.score(output, aimed)
        total, count = total + scored.loss, count + scored.count
        for row, *values in zip(rows, scored.predicted, scored.expected, strict=True):
            kept[row] = (values[0], values[1])
    predicted, expected = zip(*(kept[row] for row in sorted(kept)), strict=True)
    loss = total / count if count else float("nan")
    return Evaluation(loss, objective, predicted, expected)


def transformers_model(model: nn.Module) -> nn.Module:
    """What is inside PEFT's and our own wrappers."""
    return model.get_base_model() if isinstance(model, CoaLora | PeftModel) else model


def new_accelerator() -> Accelerator:
    """Devices and precision: bfloat16 autocast on a GPU that has it, else the parameters' own."""
    gpu = torch.cuda.is_available()
    bfloat16 = gpu and torch.cuda.is_bf16_supported()
    return Accelerator(mixed_precision="bf16" if bfloat16 else "no", cpu=not gpu)


def pad_token_of(model: nn.Module) -> int:
    """The id the model's tokenizer pads with; 0 where it has none, or no tokens at all."""
    config = transformers_model(model).config.get_text_config()
    return getattr(config, "pad_token_id", None) or 0
