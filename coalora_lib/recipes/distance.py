"""How far a quantized model is from the unquantized one, on some texts."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutput

from coalora_lib.adapter import CoaLora
from coalora_lib.kinds import Examples
from coalora_lib.kinds.embedding import mean_pooled
from coalora_lib.kinds.kind import precise
from coalora_lib.spaces import Configuration
from coalora_lib.training.batches import ordered_batches
from coalora_lib.training.evaluation import pad_token_of

#: Texts in a batch: the logits of a language model take the memory.
BATCH = 16


def aims_at_base(model: CoaLora) -> bool:
    """Whether an adapter is for the unquantized model's own outputs: of a model without a head.

    One of a model with a head was trained for a task, and what it does there is to stay.
    """
    base = model.get_base_model()
    return base.base_model is base


class Distance:
    """1 - cosine of the last hidden states, averaged over each text's tokens; or, of a model with
    an output layer over a vocabulary, KL(unquantized || quantized) at each token, in nats.

    The unquantized model has the adapter's plain factors if these are for a task.

    Attributes:
        name: "1 - cosine" or "KL".
    """

    def __init__(self, model: CoaLora, examples: Examples) -> None:
        self._model, self._examples = model, examples
        self._of_words = model.get_base_model().get_output_embeddings() is not None
        self.name = "KL" if self._of_words else "1 - cosine"

    @torch.no_grad()
    def __call__(self, configuration: Configuration) -> float:
        """The mean over texts, or over tokens; the configuration is set afterwards."""
        model = self._model
        batches = ordered_batches(self._examples, BATCH, pad_token_of(model))
        found = []
        for _, batch in tqdm(
            batches, "measuring", -(-len(self._examples) // BATCH), disable=None, leave=False
        ):
            batch = {name: value.to(model.device) for name, value in batch.items()}
            model.set_configuration(None)
            with model.disable_adapter() if aims_at_base(model) else nullcontext():
                wanted = self._outputs(batch)
            model.set_configuration(configuration)
            found.append(self._between(wanted, self._outputs(batch)))
        return torch.cat(found).double().mean().item()

    def _outputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(texts, features), or (tokens, words) of log-probabilities."""
        output = self._model(**batch, output_hidden_states=not self._of_words)
        if self._of_words:
            return precise(output.logits)[batch["attention_mask"].bool()].log_softmax(-1)
        last = precise(output.hidden_states[-1])
        return mean_pooled(BaseModelOutput(last_hidden_state=last), batch)

    def _between(self, wanted: Tensor, found: Tensor) -> Tensor:
        """(texts,) or (tokens,)."""
        if self._of_words:
            return F.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)
        return 1 - F.cosine_similarity(wanted, found, dim=-1)
