"""A loss of one's own, or the model's own where its task is not known."""

import inspect
from collections.abc import Callable, Mapping

from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from coalora_lib.kinds.kind import Examples, Scored, TaskKind, Values

#: Takes a model's output and the batch; gives the batch's mean loss, a scalar.
Loss = Callable[[ModelOutput, Mapping[str, Tensor]], Tensor]


class OwnLoss(TaskKind):
    """The loss is the only metric.

    With an own loss the model gets the columns that its ``forward`` names. So a batch may have more
    columns than the model takes. Without one it is given all, and is to give the loss.

    Args:
        model: the transformers model.
        loss: mean over a batch; the model's own by default.
    """

    name = "own-loss"
    auto_class = "AutoModel"
    columns = ()
    primary = "loss"

    def __init__(self, model: nn.Module, loss: Loss | None = None) -> None:
        self._loss = loss
        self._names = None if loss is None else set(inspect.signature(model.forward).parameters)

    def examples(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        raise ValueError("with your own loss you must make the examples yourself")

    def loss(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
        return super().loss(output, batch) if self._loss is None else self._loss(output, batch)

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: t for n, t in batch.items() if self._names is None or n in self._names}

    def training_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.inputs(batch)

    def score(self, output: ModelOutput, batch: Mapping[str, Tensor]) -> Scored:
        count = len(next(iter(batch.values())))
        nothing = [Tensor()] * count
        return Scored(self.loss(output, batch).item() * count, count, nothing, nothing)

    def metrics(self, predicted: Values, expected: Values, loss: float) -> dict[str, float]:
        """None but the loss."""
        return {}
