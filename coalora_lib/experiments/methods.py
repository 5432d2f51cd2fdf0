"""What is compared: CoA-LoRA, the methods beside it, and CoA-LoRA with one part changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.configuration import LayerConfig
from coalora_lib.experiments.profiles import Profile
from coalora_lib.experiments.setup import Setup
from coalora_lib.training.baselines import BitWidthLora, full_fine_tuning, lora, lq_lora

Configuration = list[LayerConfig]


@dataclass(frozen=True)
class Method:
    """One way to serve configurations.

    Attributes:
        make: from the shared ground, and the configuration of a run for one, the model to train.
        trains_on: "set", one run over the training set, improved by the search; "budget", a run
            for each budget on that budget's configuration; "nothing", unquantized.
        has_rank: False for what has no LoRA factors, and runs once for all ranks.
        searches: False leaves the training set as it is at first.
        keeps_all: the search's filter drops nothing.
        configurations_per_step: the profile's if None; with others, the steps change so that the
            passes stay the same.
        rate: times the profile's learning rate.
        distillation: weight of a teacher's term in the loss.
        teacher: see :class:`~coalora_lib.training.TrainingPlan`; a "model" is unquantized LoRA of
            the same rank, trained before.
        scheme: the code book, "nf" or "int".
    """

    make: Callable[[Setup, Configuration | None], nn.Module]
    trains_on: Literal["set", "budget", "nothing"]
    has_rank: bool = True
    searches: bool = True
    keeps_all: bool = False
    configurations_per_step: int | None = None
    rate: float = 1.0
    distillation: float = 0.0
    teacher: Literal["none", "model", "self"] = "none"
    scheme: Literal["nf", "int"] = "nf"


def _coa_lora(**changed) -> Callable[[Setup, Configuration | None], CoaLora]:
    """Our CoA-LoRA, with some of its settings changed."""
    settings = {
        "start": "svd",
        "output_bias": True,
        "error_features": True,
        "bias_correction": True,
    } | changed

    def make(setup: Setup, _: Configuration | None) -> CoaLora:
        means = setup.mean_inputs if settings["bias_correction"] else None
        return setup.new_model(mean_inputs=means, **settings)

    return make


def _half_residual(setup: Setup, _: Configuration | None) -> CoaLora:
    """The rank shared between trained factors and the residual's frozen ones; alpha / r stays."""
    rank, alpha = setup.run.profile.rank, setup.run.profile.alpha
    trained = rank - rank // 2
    settings = {"rank": trained, "alpha": alpha * trained / rank, "residual_rank": rank // 2}
    return _coa_lora(start="residual", **settings)(setup, None)


def _as_published(setup: Setup, _: Configuration | None) -> CoaLora:
    return setup.new_model(start="svd")


def _plain(setup: Setup, _: Configuration | None) -> CoaLora:
    return setup.new_model(configuration_aware=False)


def _bit_width_lora(setup: Setup, _: Configuration | None) -> nn.Module:
    profile = setup.run.profile
    return BitWidthLora(setup.new_base(), profile.rank, profile.alpha, setup.errors)


def _lq_lora(setup: Setup, configuration: Configuration | None) -> nn.Module:
    profile, base = setup.run.profile, setup.new_base()
    return lq_lora(base, configuration, profile.rank, profile.alpha, scheme=setup.scheme)


def _unquantized_lora(setup: Setup, _: Configuration | None) -> nn.Module:
    return lora(setup.new_base(), setup.run.profile.rank, setup.run.profile.alpha)


def _full_fine_tuning(setup: Setup, _: Configuration | None) -> nn.Module:
    return full_fine_tuning(setup.new_base())


#: Of full fine-tuning, by the adapters' learning rate, which is far too high for a whole model.
FULL_RATE = 0.05
#: What distillation learns from.
TEACHER = Method(_unquantized_lora, "nothing")
#: By name. Shared-LoRA and QLoRA are the same model, trained on the set or on one configuration.
METHODS: dict[str, Method] = {
    "CoA-LoRA": Method(_coa_lora(), "set"),
    "CoA-LoRA, as published": Method(_as_published, "set"),
    "Shared-LoRA": Method(_plain, "set"),
    "LoRA by bit width": Method(_bit_width_lora, "set"),
    "LQ-LoRA": Method(_lq_lora, "budget"),
    "QLoRA": Method(_plain, "budget"),
    "LoRA, unquantized": TEACHER,
    "full fine-tuning": Method(_full_fine_tuning, "nothing", has_rank=False, rate=FULL_RATE),
}
_OURS = METHODS["CoA-LoRA"]
_TAUGHT = {"distillation": 0.5, "teacher": "model"}
_SELF_TAUGHT = {"distillation": 0.5, "teacher": "self", "configurations_per_step": 2}
#: CoA-LoRA with one part changed, and integer codes for it and what it is measured against.
ABLATIONS: dict[str, Method] = {
    "no search": replace(_OURS, searches=False),
    "no filter": replace(_OURS, keeps_all=True),
    "no network": Method(
        _coa_lora(configuration_aware=False, output_bias=False, error_features=False), "set"
    ),
    "no bias correction": Method(_coa_lora(bias_correction=False), "set"),
    "no output bias": Method(_coa_lora(output_bias=False), "set"),
    "no error features": Method(_coa_lora(error_features=False), "set"),
    "zero start": Method(_coa_lora(start="zero"), "set"),
    "residual start": Method(_half_residual, "set"),
    "1 configuration a step": replace(_OURS, configurations_per_step=1),
    "2 configurations a step": replace(_OURS, configurations_per_step=2),
    "4 configurations a step": replace(_OURS, configurations_per_step=4),
    "distillation": replace(_OURS, **_TAUGHT),
    "distillation in place": replace(_OURS, **_SELF_TAUGHT),
    "Shared-LoRA, distillation": replace(METHODS["Shared-LoRA"], **_TAUGHT),
    "Shared-LoRA, distillation in place": replace(METHODS["Shared-LoRA"], **_SELF_TAUGHT),
    "CoA-LoRA, integer codes": replace(_OURS, scheme="int"),
    "Shared-LoRA, integer codes": replace(METHODS["Shared-LoRA"], scheme="int"),
    "LQ-LoRA, integer codes": replace(METHODS["LQ-LoRA"], scheme="int"),
}
EVERY_METHOD = METHODS | ABLATIONS


def ablations_of(profile: Profile) -> list[str]:
    """The ablations but for the one that changes the configurations of a step to what the profile
    has anyway: it would be the whole again."""
    same = replace(_OURS, configurations_per_step=profile.configurations_per_step)
    return [name for name, method in ABLATIONS.items() if method != same]
