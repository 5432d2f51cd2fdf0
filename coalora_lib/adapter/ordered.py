"""What one configuration needs, fitted in the layers' order on some texts, without training.

Each layer is given the inputs x~ of the model as it is quantized and corrected up to there, and
aims at what the unquantized model has on the same tokens. The low-rank term and the bias with the
least expected error are closed form (:mod:`coalora_lib.calibration`). Four things make it good:

**Residuals.** A layer whose output is added to a residual r aims at W x + r - r~, so that it also
mends what the layers before could not.

**What matters.** Errors of an output count by the metric G of :mod:`coalora_lib.calibration`, for
the divergence of what the two models say.

**Codes.** If asked for, the weights' codes are chosen for the layer's inputs too, see
:mod:`coalora_lib.quantization.compensation`. They take the same bytes as the nearest ones, but are
the configuration's own: what is fitted then holds a quantized weight for each layer.

**Ranks.** The numbers that a rank r takes in all layers go where they gain most: each direction
lessens the divergence by its gain, and takes in + out numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from coalora_lib.adapter.aims import Aims, parts, real_tokens, wide
from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.model import CoaLora
from coalora_lib.adapter.passes import Additions, hooks
from coalora_lib.adapter.quantized import Corrected, Current, PackedWeight
from coalora_lib.adapter.resolving import ConfigurationLike
from coalora_lib.calibration import RIDGE, Term, reduced_rank_regression, ridge_factor
from coalora_lib.kinds import TaskKind, objective_of
from coalora_lib.spaces import Choice, QuantizedWeight
from coalora_lib.validation import check_number

#: Draws of the outcome for the metric.
DRAWS = 2
#: Added to the diagonal of G, as a part of its mean; between 0.01 and 0.3 it hardly matters.
METRIC_RIDGE = 0.1
#: The ridge of R grows by so many times features over tokens: few texts say little of directions.
SHRINKAGE = 3.0
#: A layer's rank is at most so many times the mean one.
SPREAD = 2


class OrderedFit:
    """Texts, the unquantized model's outputs for them, and how much each output matters.

    It is made once and can fit any number of configurations of the model.

    Args:
        model: its trained factors are left as they are.
        batch: the texts, all at once, as a tokenizer gives them with padding; 256 do, thousands do
            better.
        residuals, weighted, spread, compensated: the parts above. Without ``spread`` each layer has
            the same rank; a space that cannot choose codes for inputs keeps the nearest ones.
        trained: aim at the unquantized model with its trained LoRA, in whose place the terms then
            are; by default at the pre-trained one, and trained factors stay beside the terms.
        kind: the kind of task; by default that of the model's class.
        seed: of the metric's draws.

    Raises:
        TypeError: the batch holds something else than tensors.
        ValueError: the batch has no tokens; layers do not each see its tokens, once; or the outputs
            of the model cannot be compared.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: CoaLora,
        batch: Mapping[str, Tensor],
        *,
        residuals: bool = True,
        weighted: bool = True,
        spread: bool = True,
        compensated: bool = False,
        trained: bool = False,
        kind: str | TaskKind | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.spread, self.trained = model, spread, trained
        self.compensated = compensated
        self.kind = objective_of(model.get_base_model(), kind)
        for name, value in batch.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} of the batch is a {type(value).__name__}, not a tensor; a tokenizer "
                    "gives tensors with return_tensors='pt'"
                )
        inputs = self.kind.inputs({name: value.to(model.device) for name, value in batch.items()})
        if not real_tokens(inputs).any():
            raise ValueError("the batch has no tokens, or none but padding")
        # Parts of like length need less padding.
        by_length = real_tokens(inputs).sum(1).argsort(stable=True)
        self.inputs = {name: value[by_length] for name, value in inputs.items()}
        self.metrics: dict[str, Tensor] = {}  #: L of G = L L^T, (out, out), by layer
        with unquantized(model, trained):
            self.aims = Aims(model, self.inputs, residuals)
            if weighted:
                self._measure_metrics(seed)

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit(self, configuration: ConfigurationLike, rank: int | None = None) -> None:
        """Fit a low-rank term and a bias for every layer of one configuration.

        From then on the model computes with them wherever this configuration is set, exported or
        merged, in the place of the frozen terms and the corrections that it has else. The current
        configuration stays.

        Args:
            configuration: as for :meth:`CoaLora.set_configuration`; fitted again if it was fitted
                before.
            rank: of the terms; by default the frozen term's, or the adapter's.

        Raises:
            ValueError: the configuration is none of the model's, or the rank is below 1.
            TypeError: the rank is no whole number.
        """
        model = self.model
        resolved = model.resolve(configuration)
        if rank is None:
            rank = model.settings.rank_of_frozen_term or model.settings.rank
        check_number("rank", rank, 1, whole=True)
        layers = model.layers.quantized
        ranks = {name: min(rank, *layer.kept.shape) for name, layer in layers.items()}
        with unquantized(model):
            if self.spread:  # the nearest codes tell where ranks gain
                gains = self._pass(resolved, ranks, compensated=False).gains
                ranks = _spread_ranks(model.layers, gains, ranks)
            found = self._pass(resolved, ranks, self.compensated)
            fitted = [found.fitted[name] for name in model.layer_names]
        model.layers.fitted[tuple(resolved)] = fitted
        if model.configuration == resolved:
            model.set_configuration(resolved)

    def _pass(
        self, configuration: Sequence[Choice], ranks: Mapping[str, int], compensated: bool
    ) -> _Pass:
        """What each layer needs, in order, and the gains of its directions."""
        found = _Pass(self, configuration, ranks, compensated)
        found.run(self.inputs)
        return found

    def _measure_metrics(self, seed: int) -> None:
        """G of every layer, from gradients of what the unquantized model says."""
        base, generator = self.model.get_base_model(), torch.Generator().manual_seed(seed)
        outputs: dict[str, Tensor] = {}
        sums: dict[str, Any] = dict.fromkeys(self.model.layer_names, 0)

        def keep(name: str) -> Callable:
            def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
                outputs[name] = output if output.requires_grad else output.requires_grad_()
                return outputs[name]

            return hook

        with hooks(base, {name: keep(name) for name in sums}, before=False), torch.enable_grad():
            for part in parts(self.inputs):
                real = real_tokens(part).flatten()
                outcome = self.kind.outcome(base(**part), part)
                for draw in range(DRAWS):
                    gradients = torch.autograd.grad(
                        self.kind.drawn(outcome, generator),
                        list(outputs.values()),
                        retain_graph=draw + 1 < DRAWS,
                        materialize_grads=True,
                    )
                    for name, gradient in zip(outputs, gradients, strict=True):
                        flat = wide(gradient.reshape(-1, gradient.shape[-1])[real])
                        sums[name] = sums[name] + flat.T @ flat
        self.metrics = {name: ridge_factor(total, METRIC_RIDGE) for name, total in sums.items()}


@contextmanager
def unquantized(model: CoaLora, lora: bool = False) -> Iterator[None]:
    """While it lasts, the model evaluates with its pre-trained weights, with LoRA or without."""
    training, before = model.training, model.configuration
    model.eval()
    try:
        model.set_configuration(None)
        with nullcontext() if lora else model.disable_adapter():
            yield
    finally:
        model.train(training)
        model.set_configuration(before)


def _spread_ranks(
    layers: AdaptedLayers, gains: Mapping[str, Tensor], ranks: Mapping[str, int]
) -> dict[str, int]:
    """As many numbers as these ranks take in all, given to the directions that gain most for each;
    every layer has one at least."""
    costs = {name: sum(layer.kept.shape) for name, layer in layers.quantized.items()}
    left = sum(ranks[name] * cost for name, cost in costs.items()) - sum(costs.values())
    found = dict.fromkeys(costs, 1)
    further = ((gain / costs[n], n) for n, each in gains.items() for gain in each[1:].tolist())
    for _, name in sorted(further, reverse=True):  # a layer's gains fall, so they come in order
        if costs[name] <= left:
            found[name] += 1
            left -= costs[name]
    return found


class _Pass:
    """One pass of the quantized model, in which each layer is fitted when its turn comes.

    Layers are given real tokens alone, and their outputs are zero at padding.
    """

    def __init__(
        self,
        fit: OrderedFit,
        configuration: Sequence[Choice],
        ranks: Mapping[str, int],
        compensated: bool,
    ) -> None:
        self.compensated = compensated
        self.aims, self.metrics, self.ranks = fit.aims, fit.metrics, ranks
        self.base, self.layers = fit.model.get_base_model(), fit.model.layers.quantized
        self.choices = dict(zip(self.layers, configuration, strict=True))
        self.most, self.trained = SPREAD if fit.spread else 1, fit.trained
        factors = dict(zip(self.layers, fit.model.layers.factors(), strict=True))
        self.loras = factors if fit.trained else {}
        self.scaling = fit.model.layers.scaling
        self.codes: dict[str, QuantizedWeight | None] = {}
        self.fitted: dict[str, Corrected] = {}
        self.gains: dict[str, Tensor] = {}
        self.additions = Additions(self._fit_at_addition)
        self._last: tuple[Tensor, _Inputs] | None = None  # layers in a row may share their inputs

    def run(self, inputs: Mapping[str, Tensor]) -> None:
        """Pass over the texts, up to the last layer."""
        before = {name: self._before(name) for name in self.layers}
        after = {name: self._after(name) for name in self.layers}
        outer = hooks(self.base, before, before=True), hooks(self.base, after, before=False)
        with suppress(_AllFitted), outer[0], outer[1], self.additions:
            self.base(**inputs)

    def _before(self, name: str) -> Callable:
        """A hook that quantizes a layer, without correction and frozen term: both are sought."""
        layer, choice = self.layers[name], self.choices[name]

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            entered = inputs[0]
            real = self.aims.tokens(name, entered)
            if self._last is None or self._last[0] is not entered:
                self._last = entered, _Inputs(real)
            codes = None
            if self.compensated:
                codes = layer.quantize_for_inputs(choice, self._last[1].factor)
            self.codes[name] = codes
            packed = layer.plain(choice) if codes is None else PackedWeight(codes)
            layer.swap(Current(packed.restore(layer.kept.dtype), None, choice))
            return real.to(entered.dtype)

        return hook

    def _after(self, name: str) -> Callable:
        """A hook that fits a layer to what it was given, or waits for its residual."""

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            assert self._last is not None  # the hook before it ran
            shape = self._last[0].shape
            if name not in self.aims.residuals:
                output = self._fit(name, output, self.aims.of(name) - wide(output))
                return self.aims.padded(output, shape)
            whole = self.aims.padded(output, shape)
            self.additions.wait_for(name, whole)
            return whole

        return hook

    def _fit_at_addition(self, name: str, output: Tensor, residual: Tensor) -> Tensor:
        real = self.aims.tokens(name, output)
        missing = self.aims.of(name) - real - self.aims.tokens(name, residual)
        return self.aims.padded(self._fit(name, real.to(output.dtype), missing), output.shape)

    def _fit(self, name: str, output: Tensor, missing: Tensor) -> Tensor:
        """Fit the layer called last, which misses this; its output with what was found."""
        assert self._last is not None  # it was called
        inputs, layer, rank = self._last[1], self.layers[name], self.ranks[name]
        most = min(self.most * rank, *layer.kept.shape)
        lora = self.loras.get(name)
        product = None if lora is None else wide(lora.l1) @ wide(lora.l2) * self.scaling
        term, correction = inputs.fit(missing, rank, most, self.metrics.get(name), product)
        left, right, self.gains[name] = term
        added = (inputs.centred + inputs.mean) @ right.T @ left.T + correction
        if layer.transposed:
            left, right = right.T, left.T
        self.fitted[name] = Corrected(
            self.choices[name], left, right, correction, self.trained, self.codes[name]
        )
        if len(self.fitted) == len(self.layers):
            raise _AllFitted
        return output + added.to(output.dtype)


class _AllFitted(Exception):
    """The rest of a pass is not needed: of a language model the head takes most memory."""


class _Inputs:
    """The inputs of layers, centred, with what every fit on them needs."""

    def __init__(self, inputs: Tensor) -> None:
        self.mean = inputs.mean(0)
        self.centred = inputs - self.mean
        tokens, width = inputs.shape
        ridge = RIDGE + SHRINKAGE * width / tokens
        second = self.centred.T @ self.centred / tokens
        self.factor, self.added = ridge_factor(second, ridge), ridge * second.diagonal().mean()

    def fit(
        self,
        missing: Tensor,
        rank: int,
        most: int,
        metric: Tensor | None = None,
        lora: Tensor | None = None,
    ) -> tuple[Term, Tensor]:
        """For (tokens, out) of what outputs miss: a term of this rank with the gains of ``most``
        directions, and (out,) for a bias.

        The ridge draws the term towards zero, or to the LoRA, (out, in), in whose place it is.
        """
        mean = missing.mean(0)
        cross = (missing - mean).T @ self.centred / len(missing)
        if lora is not None:  # C + ridge P over R + ridge is P and what is beyond it
            cross = cross + self.added * lora
        left, right, gains = reduced_rank_regression(cross, self.factor, most, metric)
        left, right = left[:, :rank], right[:rank]
        return Term(left, right, gains), mean - left @ (right @ self.mean)
