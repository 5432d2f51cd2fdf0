"""How the models of methods are made, and what prepares one for a configuration without training.

A maker is given the shared ground, the rank (None where a method has none), the configuration of a
run for one, and settings of the adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from coalora_lib.adapter import CoaLora, OrderedFit
from coalora_lib.experiments.setup import Setup
from coalora_lib.spaces import Configuration
from coalora_lib.training import baselines, polish

Maker = Callable[..., nn.Module]
Fitter = Callable[[Setup, CoaLora], Callable[[Configuration], object]]


def coa_lora(setup: Setup, rank: int, _: Configuration | None, **settings) -> CoaLora:
    """With the moments of inputs that the settings need."""
    calibrated = settings.get("start") == "calibrated"
    means = None
    if settings.get("bias_correction"):
        means = setup.moments.means if calibrated else setup.mean_inputs
    seconds = setup.moments.seconds if calibrated else None
    return setup.new_model(rank=rank, mean_inputs=means, second_moments=seconds, **settings)


def half_frozen(setup: Setup, rank: int, _: Configuration | None, **settings) -> CoaLora:
    """The rank shared between trained factors and frozen ones; alpha / r stays."""
    trained = rank - rank // 2
    shared = {"alpha": setup.run.profile.alpha * trained / rank, "frozen_rank": rank // 2}
    return coa_lora(setup, trained, None, **settings, **shared)


def all_frozen(setup: Setup, rank: int | None, _: Configuration | None, **settings) -> CoaLora:
    """The whole rank in frozen factors. LoRA's own, which attach needs, stay as at the start: zero
    without training."""
    return coa_lora(setup, 1, None, frozen_rank=rank, adjuster="none", **settings)


def in_order(steps: int = 0, **parts: Any) -> Fitter:
    """The frozen factors of a configuration, fitted in the layers' order; polished for some steps.

    ``parts`` are :class:`~coalora_lib.adapter.OrderedFit`'s. Terms that replace trained factors
    have the rank of these and of the frozen ones together. Of a decoder, a step of the polish takes
    a batch of the training.
    """

    def fitter(setup: Setup, model: CoaLora) -> Callable[[Configuration], object]:
        fit = OrderedFit(model, setup.fitting_batch(model), kind=setup.objective, **parts)
        sizes = {"batch_size": setup.run.profile.batch_size} if setup.objective.of_tokens else {}
        rank = model.settings.frozen_rank or 0
        if parts.get("trained"):
            rank += model.settings.rank

        def prepare(configuration: Configuration) -> None:
            fit.fit(configuration, rank)
            if steps:
                polish(fit, configuration, setup.train, steps, seed=setup.run.seed, **sizes)

        return prepare

    return fitter


def lq_lora(setup: Setup, rank: int, configuration: Configuration) -> nn.Module:
    """For the one configuration alone."""
    alpha = setup.run.profile.alpha
    return baselines.lq_lora(setup.new_base(), configuration, rank, alpha, space=setup.space)


def unquantized_lora(setup: Setup, rank: int, _: Configuration | None) -> nn.Module:
    """LoRA on the pre-trained weights."""
    return baselines.lora(setup.new_base(), rank, setup.run.profile.alpha)


def full_fine_tuning(setup: Setup, *_) -> nn.Module:
    """All weights are trained, and none is quantized."""
    return baselines.full_fine_tuning(setup.new_base())
