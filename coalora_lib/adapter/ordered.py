"""What one configuration needs, fitted in the layers' order on some texts, without training.

Each layer is given the inputs x~ of the model as it is quantized and corrected up to there, and
aims at the outputs W x of the unquantized model on the same tokens. The low-rank term and the bias
with the least expected error are closed form (:mod:`coalora_lib.calibration`). Both models pass
over the texts once: when a layer's turn comes in the quantized one, all that it is given is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.model import CoaLora
from coalora_lib.adapter.quantized import Corrected, Current
from coalora_lib.adapter.resolving import ConfigurationLike
from coalora_lib.calibration import reduced_rank_regression, ridge_factor
from coalora_lib.spaces import Choice


@torch.inference_mode(False)
@torch.no_grad()
def fit_in_order(
    model: CoaLora,
    configuration: ConfigurationLike,
    batch: Mapping[str, Tensor],
    rank: int | None = None,
    beside_adapter: bool = False,
) -> None:
    """Fit a low-rank term and a bias for every layer of one configuration.

    From then on the model computes with them wherever this configuration is set, exported or
    merged, in the place of the frozen terms and the corrections that it has else. The current
    configuration stays. What is fitted is not saved with the model.

    Args:
        model: its trained factors are left as they are.
        configuration: as for :meth:`CoaLora.set_configuration`; fitted anew if it was before.
        batch: the texts, all at once, as a tokenizer gives them with padding; some hundred do.
        rank: k of the terms, beside the trained factors'; a layer with a shorter side gets that.
            By default the frozen term's, or the adapter's.
        beside_adapter: fit what LoRA, as it is now, leaves over; by default LoRA is off meanwhile,
            as it is before training.

    Raises:
        ValueError: the configuration is none of the model's; or its layers do not each see the
            tokens of the batch, once.
    """
    resolved, before, training = model.resolve(configuration), model.configuration, model.training
    rank = rank or model.settings.rank_of_frozen_term or model.settings.rank
    base, layers = model.get_base_model(), model.layers
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
    fit = _Fit(layers, resolved, _real_tokens(inputs).flatten(), rank)
    model.eval()
    try:
        model.set_configuration(None)
        with model.disable_adapter(), _hooks(base, fit.each(fit.aim), before=False):
            base(**inputs)
        if beside_adapter:
            model.set_configuration(resolved)
        off = nullcontext() if beside_adapter else model.disable_adapter()
        with off, _hooks(base, fit.each(fit.layer), before=True):
            base(**inputs)
        layers.fitted[tuple(resolved)] = fit.all_found()
    finally:
        model.train(training)
        model.set_configuration(before)


def _real_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """(texts, length) bool, false at padding; all of them where there is no mask."""
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    return torch.ones_like(batch["input_ids"], dtype=torch.bool)


@contextmanager
def _hooks(base: nn.Module, of: Mapping[str, Callable], before: bool) -> Iterator[None]:
    """While it lasts, these are called before, or after, the layers of their names."""
    handles = []
    for name, hook in of.items():
        layer = base.get_submodule(name)
        register = layer.register_forward_pre_hook if before else layer.register_forward_hook
        handles.append(register(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Fit:
    """The state of one fit: what layers aim at, and what was found for them."""

    def __init__(
        self, layers: AdaptedLayers, configuration: Sequence[Choice], real: Tensor, rank: int
    ) -> None:
        self.layers, self.real, self.rank = layers.quantized, real, rank
        self.choices = dict(zip(layers.quantized, configuration, strict=True))
        self.targets: dict[str, Tensor] = {}
        self.found: dict[str, Corrected] = {}
        self._last: tuple[Tensor, _Inputs] | None = None  # layers in a row may share their inputs

    def each(self, hook: Callable[[str], Callable]) -> dict[str, Callable]:
        """A hook for every layer."""
        return {name: hook(name) for name in self.layers}

    def all_found(self) -> list[Corrected]:
        """What was found, in the layers' order; a ValueError names a layer that was not called."""
        for name in self.layers:
            if name not in self.found:
                raise ValueError(f"{name} was not called when the model passed over the texts")
        return [self.found[name] for name in self.layers]

    def aim(self, name: str) -> Callable:
        """A hook that keeps the outputs that a layer is to reach."""

        def hook(_: nn.Module, inputs: Any, output: Tensor) -> None:
            if name in self.targets:
                raise ValueError(f"{name} is called twice in a pass, and cannot be fitted in order")
            self.targets[name] = self._tokens(name, output)

        return hook

    def layer(self, name: str) -> Callable:
        """A hook that fits a layer once its inputs are there, and switches it to what was found."""

        def hook(lora: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name not in self.targets:
                raise ValueError(f"{name} is called in one pass more often than in the other")
            layer, choice = self.layers[name], self.choices[name]
            if self._last is None or self._last[0] is not inputs[0]:
                self._last = inputs[0], _Inputs(self._tokens(name, inputs[0]))
            # Without correction and frozen term: both are to be found.
            layer.swap(Current(layer.plain(choice).restore(layer.pretrained.dtype), None, choice))
            missing = self.targets.pop(name) - self._tokens(name, lora.forward(*inputs))
            first, second, correction = self._last[1].fit(
                missing, min(self.rank, *layer.pretrained.shape)
            )
            left, right = (second.T, first.T) if layer.transposed else (first, second)
            self.found[name] = Corrected(choice, left, right, correction)
            layer.switch(self.found[name])

        return hook

    def _tokens(self, name: str, values: Tensor) -> Tensor:
        """(tokens, features) without padding, float32 at least."""
        flat = values.reshape(-1, values.shape[-1])
        if len(flat) != len(self.real):
            raise ValueError(
                f"{name} is given {len(flat)} tokens, and the texts have {len(self.real)}: layers "
                "of an encoder with a decoder, or of experts, cannot be fitted in order"
            )
        wide = torch.promote_types(flat.dtype, torch.float32)
        return flat[self.real].to(wide)


class _Inputs:
    """The inputs of layers, centred, with what every fit on them needs."""

    def __init__(self, inputs: Tensor) -> None:
        self.mean = inputs.mean(0)
        self.centred = inputs - self.mean
        self.factor = ridge_factor(self.centred.T @ self.centred / len(inputs))

    def fit(self, missing: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """For (tokens, out) of what the outputs miss: (out, k), (k, in), and (out,) for a bias."""
        mean = missing.mean(0)
        cross = (missing - mean).T @ self.centred / len(missing)
        left, right = reduced_rank_regression(cross, self.factor, rank)
        return left, right, mean - left @ (right @ self.mean)
