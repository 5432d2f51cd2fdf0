"""Some gradient steps for one configuration, starting from its fit in closed form.

The steps lower the divergence of the model's outputs from those of the unquantized model. Adam
(arXiv 1412.6980) steps each coordinate alike, so the coordinates are those in which they
count alike: with G = L L^T and R = E[x~ x~^T] = K K^T as in :mod:`coalora_lib.calibration`, a term
is written as

    M = L^-T A B K^-1,    A (out, k) and B (k, in) with equal singular values,

in units of the root mean square of each factor at the start.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn
from tqdm import tqdm

from coalora_lib.adapter import OrderedFit
from coalora_lib.adapter.ordered import unquantized
from coalora_lib.adapter.passes import hooks
from coalora_lib.adapter.quantized import Corrected, Current, QuantizedLinear
from coalora_lib.adapter.resolving import ConfigurationLike
from coalora_lib.calibration import ridge_factor
from coalora_lib.kinds import Examples
from coalora_lib.training.batches import collate
from coalora_lib.training.evaluation import pad_token_of
from coalora_lib.validation import check_number

#: Added to the diagonal of R, as a part of its mean.
RIDGE = 0.3
#: Steps over which the rate rises to its full height.
WARM_UP = 3
#: Adam's; the second is shorter than its usual 0.999, since the steps are few.
BETAS = (0.9, 0.99)
#: The least unit, of what is nothing.
SMALLEST = 1e-12


@torch.inference_mode(False)
def polish(
    fit: OrderedFit,
    configuration: ConfigurationLike,
    examples: Examples,
    steps: int = 25,
    batch_size: int = 512,
    learning_rate: float = 0.03,
    seed: int = 0,
) -> list[float]:
    """Improve the fit of one configuration. If it has no fit yet, it is fitted first.

    The trained factors of the adapter stay as they are, and so does the current configuration.

    Args:
        fit: of the model that is polished.
        configuration: as for :meth:`~coalora_lib.adapter.CoaLora.set_configuration`.
        examples: texts as a kind makes them; labels are not looked at. Others than the fit's do
            better than those again.
        steps: each over ``batch_size`` texts, or all if there are fewer.
        learning_rate: Adam's, in the units above.
        seed: of the order of the texts.

    Returns:
        The divergence at each step, before it.

    Raises:
        TypeError: a number is none, or not a whole one.
        ValueError: the configuration is none of the model's, there are no examples, or a number is
            out of range.
        FloatingPointError: a divergence is not finite; the fit is unchanged.

    Warns:
        UserWarning: on the texts of the first step the divergence rose; the fit is unchanged.
    """
    model = fit.model
    check_number("steps", steps, 0, whole=True)
    check_number("batch_size", batch_size, 1, whole=True)
    check_number("learning_rate", learning_rate, 0)
    if not len(examples):
        raise ValueError("there are no examples to polish on")
    key = tuple(model.resolve(configuration))
    if key not in model.layers.fitted:
        fit.fit(configuration)
    before, training = model.configuration, model.training
    batches = _batches(fit, examples, batch_size, seed)
    first = next(batches)
    model.eval()
    try:
        model.set_configuration(list(key))
        terms = _terms(fit, model.layers.fitted[key])
        losses = _descend(fit, terms, chain([first], batches), steps, learning_rate)
        if losses and not (after := _divergence(fit, terms, first).item()) <= losses[0]:
            warnings.warn(
                f"the divergence on the first texts rose from {losses[0]:.3g} to {after:.3g}, so "
                f"the fit stays as it was; a lower learning_rate than {learning_rate:g} may help",
                stacklevel=2,
            )
        else:
            model.layers.fitted[key] = [term.fitted() for term in terms]
    finally:
        model.train(training)
        model.set_configuration(before)
    return losses


def _descend(
    fit: OrderedFit,
    terms: Sequence[_Term],
    batches: Iterator[dict[str, Tensor]],
    steps: int,
    learning_rate: float,
) -> list[float]:
    """Steps of Adam over the terms; the divergence before each."""
    losses: list[float] = []
    parameters = [p for term in terms for p in term.parameters]
    optimizer = torch.optim.Adam(parameters, learning_rate, BETAS)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    for step in tqdm(range(steps), "polish", disable=None, leave=False):
        loss = _divergence(fit, terms, next(batches))
        losses.append(loss.item())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {step}: the divergence is {losses[-1]}")
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        rate.step()
    return losses


def _batches(
    fit: OrderedFit, examples: Examples, size: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """The model's inputs for one batch of texts after another, without end."""
    model = fit.model
    for rows in _random_rows(len(examples), size, seed):
        batch = collate([examples[row] for row in rows], pad_token_of(model))
        yield {n: t.to(model.device) for n, t in fit.kind.inputs(batch).items()}


def _random_rows(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Rows of one batch after another, without end. Each has texts of all lengths, since with so
    few steps batches of similar length would pull in different directions."""
    generator = torch.Generator().manual_seed(seed)
    left: list[int] = []
    while True:
        if len(left) < min(size, count):
            left = torch.randperm(count, generator=generator).tolist()
        yield left[:size]
        left = left[size:]


def _divergence(fit: OrderedFit, terms: Sequence[_Term], batch: Mapping[str, Tensor]) -> Tensor:
    """Of the model with these terms from the unquantized one, on a batch."""
    base, kind = fit.model.get_base_model(), fit.kind
    with torch.no_grad(), unquantized(fit.model, fit.trained):
        target = kind.outcome(base(**batch), batch)
    for term in terms:
        term.use()
    with torch.enable_grad():
        return kind.divergence(kind.outcome(fit.model(**batch), batch), target)


def _terms(fit: OrderedFit, fitted: Sequence[Corrected]) -> list[_Term]:
    """What is polished, in coordinates that count alike; the configuration is set."""
    factors = _input_factors(fit)
    layers = fit.model.layers.quantized.items()
    return [
        _Term(layer, state, fit.metrics.get(name), factors[name])
        for (name, layer), state in zip(layers, fitted, strict=True)
    ]


@torch.no_grad()
def _input_factors(fit: OrderedFit) -> dict[str, Tensor]:
    """K of each layer's inputs over the texts of the fit, (in, in)."""
    found: dict[str, Tensor] = {}
    last: tuple[Tensor, Tensor] | None = None  # layers in a row may share their inputs

    def measure(name: str) -> Callable:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal last
            if last is None or last[0] is not inputs[0]:
                entered = fit.aims.tokens(name, inputs[0])
                entered = entered - entered.mean(0)
                last = inputs[0], ridge_factor(entered.T @ entered / len(entered), RIDGE)
            found[name] = last[1]

        return hook

    base = fit.model.get_base_model()
    with hooks(base, {name: measure(name) for name in fit.model.layer_names}, before=True):
        base(**fit.inputs)
    return found


class _Term:
    """One layer's term and bias while they are polished.

    ``metric`` is L, or None for the identity; ``factor`` is K.
    """

    @torch.no_grad()
    def __init__(
        self, layer: QuantizedLinear, state: Corrected, metric: Tensor | None, factor: Tensor
    ) -> None:
        self.layer, self.state = layer, state
        wide = factor.dtype
        self.plain = layer.without_term(state).restore(wide)
        left, right = state.left.to(wide), state.right.to(wide)
        if layer.transposed:
            left, right = right.T, left.T
        if metric is None:
            metric = torch.eye(len(left), dtype=wide, device=left.device)
        first, second = _balanced(metric.T @ left, right @ factor)
        identity = torch.eye(len(factor), dtype=wide, device=left.device)
        self.back_left = torch.linalg.inv(metric.T)
        self.back_right = torch.linalg.solve_triangular(factor, identity, upper=False)
        values = first, second, state.correction.to(wide)
        self.units = [value.square().mean().sqrt().clamp(min=SMALLEST) for value in values]
        self.parameters = [
            (value / unit).requires_grad_() for value, unit in zip(values, self.units, strict=True)
        ]

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """(out, k), (k, in), and (out,) for the bias."""
        first, second, bias = (p * u for p, u in zip(self.parameters, self.units, strict=True))
        return self.back_left @ first, second @ self.back_right, bias

    def use(self) -> None:
        """Have the layer compute with it."""
        left, right, bias = self.factors()
        term = (left @ right).T if self.layer.transposed else left @ right
        weight = (self.plain + term).to(self.layer.kept.dtype)
        self.layer.swap(Current(weight, bias, self.state))

    @torch.no_grad()
    def fitted(self) -> Corrected:
        """As it is kept."""
        left, right, bias = self.factors()
        if self.layer.transposed:
            left, right = right.T, left.T
        return replace(self.state, left=left, right=right, correction=bias)


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with its singular values' roots in both factors."""
    (turn_left, upper), (turn_right, lower) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    u, s, vh = torch.linalg.svd(upper @ lower.T)
    return turn_left @ (u * s.sqrt()), (s.sqrt()[:, None] * vh) @ turn_right.T
