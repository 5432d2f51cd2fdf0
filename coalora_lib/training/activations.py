"""What goes into a model's linear layers on a task's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from coalora_lib.training.batches import ordered_batches
from coalora_lib.training.evaluation import Examples, pad_token_of


@torch.no_grad()
def mean_inputs(
    model: nn.Module, layers: Sequence[str], examples: Examples, batch_size: int = 64
) -> dict[str, Tensor]:
    """E[x] of some linear layers, over the tokens of some examples; padding is left out.

    The model is put into evaluation mode for it, and is otherwise left as it was.

    Args:
        model: a transformers model, unquantized.
        layers: paths of linear layers in it.
        examples: from :func:`~coalora_lib.training.tokenize` or ``tokenize_blocks``.
        batch_size: examples in a forward.

    Returns:
        Layer to (in,), float32, or float64 where the model is.

    Raises:
        ValueError: there are no examples.
    """
    if not len(examples):
        raise ValueError("there are no examples to measure mean inputs on")
    sums: dict[str, Tensor] = {}
    tokens, real = 0, torch.empty(0, dtype=torch.bool)

    def add_to(name: str) -> Callable:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            entered = inputs[0].reshape(-1, inputs[0].shape[-1])[real.flatten()]
            sums[name] = sums.get(name, 0) + entered.double().sum(0)

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(add_to(n)) for n in layers]
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        batches = ordered_batches(examples, batch_size, pad_token_of(model))
        total = -(-len(examples) // batch_size)
        for _, batch in tqdm(batches, "mean inputs", total, disable=None, leave=False):
            batch = {k: v.to(device) for k, v in batch.items() if k != "labels"}
            real = batch["attention_mask"].bool()
            tokens += int(real.sum())
            model(**batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    wide = next(model.parameters()).dtype == torch.float64
    return {n: (s / tokens).to(torch.float64 if wide else torch.float32) for n, s in sums.items()}
