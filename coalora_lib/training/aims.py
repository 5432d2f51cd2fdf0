"""Targets for texts without labels: the outputs of the model itself before it is quantized."""

import torch
from transformers import PreTrainedModel

from coalora_lib.kinds import Examples, TaskKind
from coalora_lib.training.batches import ordered_batches
from coalora_lib.training.evaluation import pad_token_of


@torch.no_grad()
def with_aims(
    model: PreTrainedModel, examples: Examples, kind: TaskKind, batch_size: int = 256
) -> Examples:
    """Examples with the outputs of an unquantized model as labels; examples with labels stay as
    they are.

    The model computes in its own precision, in evaluation mode meanwhile.

    Raises:
        ValueError: there are no labels, and the kind's are not a model's to give.
    """
    if all(name in example for example in examples[:1] for name in kind.targets):
        return examples
    if kind.of_classes:
        raise ValueError(f"examples of kind {kind.name!r} need {', '.join(kind.targets)}")
    training, device = model.training, next(model.parameters()).device
    labelled: Examples = [{} for _ in examples]
    model.eval()
    try:
        for rows, batch in ordered_batches(examples, batch_size, pad_token_of(model)):
            inputs = {name: tensor.to(device) for name, tensor in kind.inputs(batch).items()}
            found = kind.outcome(model(**inputs), inputs).cpu()
            for row, aim in zip(rows, found, strict=True):
                labelled[row] = examples[row] | {"labels": aim}
    finally:
        model.train(training)
    return labelled
