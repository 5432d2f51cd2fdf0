"""How far a quantized model is from the unquantized one, on some texts."""

from collections.abc import Iterable

import torch
from tqdm import tqdm

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.ordered import unquantized
from coalora_lib.kinds import Embedding, Examples, objective_of
from coalora_lib.spaces import Configuration
from coalora_lib.training.batches import ordered_batches
from coalora_lib.training.evaluation import pad_token_of

#: Texts in a batch: the logits of a language model take the memory.
BATCH = 16


def has_head(model: CoaLora) -> bool:
    """Whether a model does a task, so that its adapter was trained for that."""
    base = model.get_base_model()
    return base.base_model is not base


class Distance:
    """The outputs of a model under a configuration, compared with its unquantized outputs.

    Of a model without a head that is the pre-trained model, without the adapter. With one the
    adapter was trained for a task, and its plain factors stay.

    Attributes:
        name: "1 - cosine" of an embedding model; of one that predicts classes or tokens "KL", in
            nats a prediction; else "half squared distance".
    """

    def __init__(self, model: CoaLora, examples: Examples) -> None:
        base = model.get_base_model()
        self._model, self._examples, self._kind = model, examples, objective_of(base)
        self.name = "KL" if self._kind.of_classes else "half squared distance"
        if isinstance(self._kind, Embedding):
            self.name = "1 - cosine"

    def __call__(self, configuration: Configuration) -> float:
        """The mean over predictions; the configuration is set afterwards."""
        return self.each([configuration])[0]

    @torch.no_grad()
    def each(self, configurations: Iterable[Configuration]) -> list[float]:
        """The same for some configurations; the last one is set afterwards.

        The unquantized outputs are kept for one batch at a time, because logits take memory.
        """
        model, kind, asked = self._model, self._kind, list(configurations)
        batches = ordered_batches(self._examples, BATCH, pad_token_of(model))
        total = -(-len(self._examples) // BATCH)
        found, predictions = [0.0] * len(asked), 0
        for _, batch in tqdm(batches, "measuring", total, disable=None, leave=False):
            batch = {name: value.to(model.device) for name, value in batch.items()}
            with unquantized(model, has_head(model)):
                meant = kind.outcome(model(**batch), batch)
            for number, configuration in enumerate(asked):
                model.set_configuration(configuration)
                said = kind.outcome(model(**batch), batch)
                found[number] += kind.divergence(said, meant).item() * len(meant)
            predictions += len(meant)
        return [each / predictions for each in found]
