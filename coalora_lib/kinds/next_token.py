"""The next token as another model expects it: texts need no labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from coalora_lib.kinds.kind import Examples, Scored, TaskKind, Values, precise
from coalora_lib.kinds.language import CausalLanguageModel


class NextToken(CausalLanguageModel):
    """Distributions of the next token, near those of an unquantized model.

    The labels of a batch are that model's logits, (batch, length, vocabulary) floating point. A
    vector for a text can be stored with the examples; a number for each token of a vocabulary, at
    each token of the texts, cannot. So :meth:`aimed` computes them for the batch at hand.

    Every token but padding counts, the last one of a block too. What comes after it is not in the
    text, but both models have a distribution of it.

    The primary metric is the loss, KL(unquantized || model) in nats a token. It tells models apart
    that agree on every likeliest token, and it is what is trained and what fits lessen.

    Args:
        unquantized: the model aimed at, put into evaluation mode; None where no loss is asked for.
            It is not the model that is trained: an adapter changes that in place.
    """

    name = "next-token"
    primary = "loss"

    def __init__(self, unquantized: PreTrainedModel | None = None) -> None:
        self._unquantized = None if unquantized is None else unquantized.eval()

    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """The same blocks of texts as of a language model, without labels."""
        blocks = super().examples(split, tokenizer, max_length)
        return [self.inputs(block) for block in blocks]

    def check(self, model: nn.Module) -> None:
        if model is self._unquantized:
            raise ValueError(
                f"the {type(model).__name__} to aim at is the one that is to be like it; load it "
                "once more, or copy it before an adapter is attached"
            )

    @torch.no_grad()
    def aimed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._unquantized is None:
            return dict(batch)
        inputs = self.inputs(batch)
        model = self._unquantized.to(next(iter(inputs.values())).device)
        return inputs | {"labels": model(**inputs).logits}

    def training_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.inputs(batch)

    def loss(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        """KL(unquantized || model) in nats, averaged over the batch's tokens.

        Raises:
            ValueError: there is no model to aim at, or it has another vocabulary.
        """
        both = output.logits, self._aims(output, batch)
        if "attention_mask" not in batch:
            return self.divergence(*(precise(logits).flatten(0, 1) for logits in both))
        # At padding both are set to zero, and so do not differ. Tokens cannot be selected, as
        # outcome does: the processor would wait for their number, and a captured pass must not.
        real = batch["attention_mask"].bool()
        even = (precise(each).masked_fill(~real[..., None], 0).flatten(0, 1) for each in both)
        return self.divergence(*even) * real.numel() / real.sum()

    def score(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Scored:
        """The same, summed; predicted and expected are each token's likeliest next ones."""
        said = self.outcome(output, batch)
        meant = self.outcome(ModelOutput(logits=self._aims(output, batch)), batch)
        mask = batch.get("attention_mask", torch.ones(output.logits.shape[:2]))
        of_texts = mask.bool().sum(1).tolist()
        total = self.divergence(said, meant).item() * len(said)
        likeliest = (logits.argmax(-1).cpu().split(of_texts) for logits in (said, meant))
        return Scored(total, len(said), *likeliest)

    def distributions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return TaskKind.distributions(self, logits, batch)  # the loss is a distillation already

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """Agreement: the share of tokens whose likeliest next token is the unquantized model's."""
        return {"agreement": self.share_right(predicted, expected)}

    def _aims(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        """The unquantized model's logits, of the shape of the model's own."""
        aims = batch.get("labels")
        if aims is None or not aims.is_floating_point():
            raise ValueError(
                f"a loss of kind {self.name!r} needs a model to aim at, and there is none; give "
                "NextToken(unquantized) as the kind"
            )
        if aims.shape != output.logits.shape:
            raise ValueError(
                f"the unquantized model gives logits of shape {tuple(aims.shape)}, and the model "
                f"{tuple(output.logits.shape)}; both need the same vocabulary"
            )
        return aims
