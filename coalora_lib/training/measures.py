"""Measurements of a model's linear layers on a task's data: moments of inputs, and importance.

Importance is the diagonal Fisher information, squared gradients,

    F_ij = mean over examples of (d loss(example) / d w_ij)^2

each example's own. They come from one backward pass for each batch: for a linear layer an example's
gradient is the product of what went in and of what came back, summed over its tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from coalora_lib.adapter.passes import hooks
from coalora_lib.kinds import Examples
from coalora_lib.training.batches import ordered_batches
from coalora_lib.training.evaluation import pad_token_of


class InputMoments(NamedTuple):
    """First and second moments of what goes into each layer, by name."""

    means: dict[str, Tensor]  #: E[x], (in,)
    seconds: dict[str, Tensor]  #: E[x x^T], (in, in); one tensor for layers that share an input


def mean_inputs(
    model: nn.Module, layers: Sequence[str], examples: Examples, batch_size: int = 64
) -> dict[str, Tensor]:
    """The means of :func:`input_moments` alone, which take less time and memory."""
    return _moments(model, layers, examples, batch_size, second=False).means


def input_moments(
    model: nn.Module, layers: Sequence[str], examples: Examples, batch_size: int = 64
) -> InputMoments:
    """E[x] and E[x x^T] of linear layers of an unquantized model, over the tokens of examples.

    Padding is left out; the model is in evaluation mode meanwhile. Everything is float32, or
    float64 where the model is.

    Raises:
        ValueError: there are no examples, or the model is an encoder with a decoder.
    """
    return _moments(model, layers, examples, batch_size, second=True)


@torch.no_grad()
def _moments(
    model: nn.Module, layers: Sequence[str], examples: Examples, batch_size: int, second: bool
) -> InputMoments:
    what = "input moments" if second else "mean inputs"
    if not len(examples):
        raise ValueError(f"there are no examples to measure {what} on")
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"the layers of a {type(model).__name__} see two sequences; {what} are over one"
        )
    sums = _Sums(layers, second, wide=next(model.parameters()).dtype == torch.float64)
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        batches = ordered_batches(examples, batch_size, pad_token_of(model))
        total = -(-len(examples) // batch_size)
        with hooks(model, sums.hooks(), before=True):
            for _, batch in tqdm(batches, what, total, disable=None, leave=False):
                batch = {k: v.to(device) for k, v in batch.items() if k != "labels"}
                sums.begin(batch["attention_mask"].bool())
                model(**batch)
    finally:
        model.train(training)
    return sums.moments()


class _Sums:
    """Sums over the tokens of what enters each layer; what several layers are given is summed once,
    for the first of them."""

    def __init__(self, layers: Sequence[str], second: bool, wide: bool) -> None:
        self._layers, self._second = layers, second
        self._dtype = torch.float64 if wide else torch.float32
        self._sums: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}
        self._leader: dict[str, str] = {}  # of the layers that are given one tensor, the first
        self._last: tuple[Tensor, str] | None = None
        self._tokens, self._real = 0, torch.empty(0, dtype=torch.bool)

    def begin(self, real: Tensor) -> None:
        """A batch comes, with (texts, length) bool: which of its tokens are no padding."""
        self._real, self._last = real, None
        self._tokens += int(real.sum())

    def hooks(self) -> dict[str, Callable]:
        """What adds each layer's inputs, by name: forward pre-hooks."""
        return {name: partial(self._add, name) for name in self._layers}

    def _add(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._last is not None and inputs[0] is self._last[0]:
            self._leader[name] = self._last[1]
            return
        self._last, self._leader[name] = (inputs[0], name), name
        entered = inputs[0].reshape(-1, inputs[0].shape[-1])[self._real.flatten()]
        self._sums[name] = self._sums.get(name, 0) + entered.double().sum(0)
        if self._second:
            entered = entered.to(self._dtype)
            self._products[name] = self._products.get(name, 0) + entered.T @ entered

    def moments(self) -> InputMoments:
        """Over all tokens that there were."""
        tokens, leader = self._tokens, self._leader
        means = {name: (total / tokens).to(self._dtype) for name, total in self._sums.items()}
        # Symmetric to the last digit, which products of floats are not.
        seconds = {name: (each + each.T) / (2 * tokens) for name, each in self._products.items()}
        return InputMoments(
            {name: means[leader[name]].clone() for name in self._layers},
            {name: seconds[leader[name]] for name in self._layers} if self._second else {},
        )


def fisher_importance(
    model: nn.Module, layers: Sequence[str], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The diagonal Fisher information of some linear layers on a task's data, in one pass.

    The model, in evaluation mode meanwhile, gives for a batch, which holds ``labels``, a ``.loss``,
    the mean over its examples.

    Returns:
        Layer to (out, in) float32, the mean squared gradient, on the model's device.

    Raises:
        TypeError: a path does not lead to a linear layer.
        ValueError: there is no batch, or a loss is not finite (its number is named).
    """
    modules = {name: model.get_submodule(name) for name in layers}
    for name, module in modules.items():
        if not isinstance(module, nn.Linear):
            raise TypeError(f"{name} is a {type(module).__name__}, not a linear layer")
    totals = {
        name: torch.zeros_like(module.weight, dtype=torch.float32)
        for name, module in modules.items()
    }
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = model.training
    examples = 0
    with ExitStack() as undo:
        undo.callback(model.train, training)
        for parameter, flag in trainable.items():
            undo.callback(parameter.requires_grad_, flag)
        model.eval().requires_grad_(False)
        # Nothing is trainable; gradients flow from the embeddings on.
        embeddings = model.get_input_embeddings()
        handles = [embeddings.register_forward_hook(lambda *a: a[-1].requires_grad_())]
        for name, module in modules.items():
            handles.append(module.register_forward_hook(_accumulate_into(totals[name])))
        for handle in handles:
            undo.callback(handle.remove)
        for number, batch in enumerate(tqdm(batches, "Fisher importance", disable=None)):
            count = len(batch["labels"])
            loss = model(**batch).loss * count  # the sum: each example's gradient on its own
            if not torch.isfinite(loss):
                raise ValueError(f"the loss of batch {number} is {loss.item()}")
            loss.backward()
            examples += count
    if not examples:
        raise ValueError("there is no batch to measure importance on")
    return {name: total.div_(examples) for name, total in totals.items()}


def _accumulate_into(total: Tensor):
    """A forward hook that adds squared gradients once the backward pass comes by."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        entered = inputs[0].detach()

        def add(gradient: Tensor) -> None:
            for x, g in zip(entered, gradient, strict=True):
                tokens_in, tokens_out = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
                total.add_((tokens_out.T @ tokens_in).square())

        output.register_hook(add)

    return hook
