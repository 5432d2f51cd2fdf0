"""The methods of the experiments: a model, its training set, changed settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from coalora_lib.experiments.makers import (
    Fitter,
    Maker,
    all_frozen,
    coa_lora,
    full_fine_tuning,
    half_frozen,
    in_order,
    lq_lora,
    unquantized_lora,
)
from coalora_lib.experiments.profiles import Profile
from coalora_lib.experiments.protocols import (
    COMPARISON,
    DEPLOYMENT,
    OPTIONS,
    RECOVERY,
    SEARCH,
    Experiment,
    Target,
    everywhere,
)
from coalora_lib.experiments.setup import Setup
from coalora_lib.spaces import Configuration

Group = Literal["main", "ablation", "fitted", "option", "search", "recovery", "deployment"]

#: Of the groups that are not compared in chapter 6: how their slugs begin, and their experiment.
_APART: dict[Group, tuple[str, Experiment]] = {
    "option": ("options-", OPTIONS),
    "search": ("search-", SEARCH),
    "recovery": ("recovery-", RECOVERY),
    "deployment": ("deployment-", DEPLOYMENT),
}
#: Bits of the arbitrary configurations that have runs of their own.
ALONE_BITS = (2.1, 2.9, 3.7, 4.2)


@dataclass(frozen=True)
class Method:
    """One way to serve configurations.

    Attributes:
        label: in tables.
        make: the model to train, from the shared ground, the rank, and the configuration of a run
            for one; adapter: settings for it.
        trains_on: "set", one run over the experiment's set; "budget", a run for each budget on
            that budget's configuration; "arbitrary", a run for each of :data:`ALONE_BITS` on the
            arbitrary configuration that is nearest; "unquantized", one run on the pre-trained
            weights, for all that a run over the set is evaluated on; "nothing", the same for a
            model that knows no configurations.
        plan: settings changed of the training plan.
        rate: times the profile's learning rate.
        search: settings changed of the search; None leaves the training set as it is at first.
        has_rank: False for what has no LoRA factors, and runs once for all ranks.
        trained: False if the model is evaluated without training.
        fitter: from the set-up and the model, before it is trained, what prepares the model for a
            configuration; called before one is trained on, and before one that it has not met is
            evaluated. What a search proposes is not fitted.
        refitter: the same from the trained model, for whatever is evaluated.
        sensitive: bits are allocated by :meth:`Setup.by_sensitivity`.
        uniform: a GGUF type; a run over the set trains on it for all layers instead.
    """

    label: str
    make: Maker
    trains_on: Literal["set", "budget", "arbitrary", "unquantized", "nothing"] = "set"
    adapter: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    search: Mapping[str, Any] | None = None
    space: str = "nf"
    has_rank: bool = True
    trained: bool = True
    fitter: Fitter | None = None
    refitter: Fitter | None = None
    sensitive: bool = False
    uniform: str | None = None
    group: Group = "main"

    @property
    def slug(self) -> str:
        """Its name in files and commands: the label in small letters with dashes."""
        prefix = _APART[self.group][0] if self.group in _APART else ""
        return prefix + self.label.lower().replace(", ", "-").replace(" ", "-")

    @property
    def experiment(self) -> Experiment:
        """What its runs train on at first and are evaluated on."""
        return _APART[self.group][1] if self.group in _APART else COMPARISON

    def first_set(self, setup: Setup) -> list[Configuration]:
        """What a run over the set trains on until a search changes it."""
        if self.uniform is not None:
            return [everywhere(setup, self.uniform)]
        return self.experiment.first_set(setup)

    def budgets(self, profile: Profile) -> Sequence[float | None]:
        """Of its runs; a run over a set has none."""
        return {"budget": profile.budgets, "arbitrary": ALONE_BITS}.get(self.trains_on, (None,))

    def one(self, setup: Setup, bits: float) -> Target:
        """What a run for one configuration trains on and is evaluated on."""
        if self.trains_on == "budget":
            return bits, setup.allocated(bits)
        return None, min(
            setup.arbitrary(),
            key=lambda each: abs(setup.space.mean_bits(each, setup.shapes) - bits),
        )


#: Times the adapters' learning rate, for full fine-tuning: at the standard profile's 1e-3 it is
#: 5e-5, the largest of the rates that BERT's authors tune over (arXiv 1810.04805, appendix A.3).
FULL_RATE = 0.05
#: Weight of the teacher's term in the loss: as much as the labels'.
TAUGHT = 0.5

_PLAIN: dict[str, Any] = {"adjuster": "none"}
_WHOLE = {"start": "svd", "output_bias": True, "error_features": True, "bias_correction": True}
_OURS = Method("CoA-LoRA", coa_lora, adapter=_WHOLE, search={})
_SHARED = Method("Shared-LoRA", coa_lora, adapter=_PLAIN, search={})
_LQ = Method("LQ-LoRA", lq_lora, "budget")
#: What distillation learns from.
TEACHER = Method("LoRA, unquantized", unquantized_lora, "nothing")


def _changed(label: str, whole: Method = _OURS, **changed) -> Method:
    """An ablation; settings of the adapter are added to those of the whole."""
    adapter = {**whole.adapter, **changed.pop("adapter", {})}
    return replace(whole, label=label, group="ablation", adapter=adapter, **changed)


def _option(label: str, make: Maker = coa_lora, **adapter) -> Method:
    return Method(label, make, adapter=adapter, group="option")


def _arm(label: str, search: dict[str, Any] | None) -> Method:
    return Method(label, coa_lora, search=search, group="search")


def _fitted(
    label: str, make: Maker = half_frozen, adapter: Mapping[str, Any] | None = None, **own
) -> Method:
    return Method(label, make, adapter={**_PLAIN, **(adapter or {})}, group="fitted", **own)


def _recovery(
    label: str, make: Maker = coa_lora, adapter: Mapping[str, Any] | None = None, **own
) -> Method:
    return Method(label, make, adapter=adapter or {}, group="recovery", **own)


_TAUGHT = {"distillation": TAUGHT, "teacher": "model"}
_IN_PLACE = {"distillation": TAUGHT, "teacher": "self", "configurations_per_step": 2}
_NO_NETWORK = {**_PLAIN, "output_bias": False, "error_features": False}
_NETWORK = {"output_bias": True, "error_features": True}
_CALIBRATED: dict[str, Any] = {"start": "calibrated", "bias_correction": True}
_CORRECTED = {"bias_correction": True}
_OUTPUTS, _EVEN = {"residuals": False, "weighted": False}, {"spread": False}
_ALIKE, _IN_LORAS_PLACE = in_order(weighted=False, **_EVEN), in_order(trained=True)
_COMPENSATED = in_order(compensated=True)
_FILTERED, _ALL_KEPT = {"segments": 40}, {"segments": None}
_ALL = (
    # The comparison. Shared-LoRA and QLoRA are one model, trained on a set or one configuration.
    _OURS,
    replace(_OURS, label="CoA-LoRA, as published", adapter={"start": "svd"}),
    _SHARED,
    Method("LoRA by bit width", coa_lora, adapter={"adjuster": "bank"}, search={}),
    _LQ,
    Method("QLoRA", coa_lora, "budget", adapter=_PLAIN),
    TEACHER,
    Method("full fine-tuning", full_fine_tuning, "nothing", rate=FULL_RATE, has_rank=False),
    # Ablations: CoA-LoRA with one part changed; integer codes for it and what it is measured with.
    _changed("no search", search=None),
    _changed("no filter", search=_ALL_KEPT),
    _changed("no network", adapter=_NO_NETWORK),
    _changed("no bias correction", adapter={"bias_correction": False}),
    _changed("no output bias", adapter={"output_bias": False}),
    _changed("no error features", adapter={"error_features": False}),
    _changed("zero start", adapter={"start": "zero"}),
    _changed("residual start", make=half_frozen, adapter={"start": "residual"}),
    _changed("1 configuration a step", plan={"configurations_per_step": 1}),
    _changed("2 configurations a step", plan={"configurations_per_step": 2}),
    _changed("4 configurations a step", plan={"configurations_per_step": 4}),
    _changed("distillation", plan=_TAUGHT),
    _changed("distillation in place", plan=_IN_PLACE),
    _changed("Shared-LoRA, distillation", _SHARED, plan=_TAUGHT),
    _changed("Shared-LoRA, distillation in place", _SHARED, plan=_IN_PLACE),
    *(
        _changed(f"{each.label}, integer codes", each, space="int")
        for each in (_OURS, _SHARED, _LQ)
    ),
    # Closed forms: LoRA trained first and then fitted to each configuration; half of the rank
    # frozen for the configuration at hand, and at last all of it fitted anew. A head that is still
    # random cannot say what matters of outputs.
    _fitted("LoRA, fitted", coa_lora, trains_on="unquantized", refitter=_IN_LORAS_PLACE),
    _fitted("Shared-LoRA, fitted", coa_lora, refitter=_IN_LORAS_PLACE),
    _fitted("calibrated, Shared-LoRA", adapter=_CALIBRATED),
    _fitted("calibrated, fitted", adapter=_CALIBRATED, refitter=_IN_LORAS_PLACE),
    _fitted("calibrated, CoA-LoRA", adapter=_CALIBRATED | _NETWORK | {"adjuster": "hypernetwork"}),
    _fitted("in order, Shared-LoRA", fitter=_ALIKE),
    _fitted("in order, fitted", fitter=_ALIKE, refitter=_IN_LORAS_PLACE),
    # Options: the plainest CoA-LoRA with one option each, all without a search.
    _option("Shared-LoRA", **_PLAIN),
    _option("CoA-LoRA"),
    _option("learned scale", learned_scale=True),
    _option("output bias", output_bias=True),
    _option("error features", error_features=True),
    _option("SVD start", start="svd"),
    _option("residual start", half_frozen, start="residual"),
    _option("Shared-LoRA, residual start", half_frozen, start="residual", **_PLAIN),
    # Searches: the plainest CoA-LoRA, its set extended in one way each.
    _arm("frozen", None),
    _arm("walk", {"strategy": "walk", **_FILTERED}),
    _arm("walk, all kept", {"strategy": "walk", **_ALL_KEPT}),
    _arm("random", {"strategy": "random", **_FILTERED}),
    _arm("random, all kept", {"strategy": "random", **_ALL_KEPT}),
    _arm("nsga2", {"strategy": "nsga2", **_FILTERED}),
    _arm("local search", {"strategy": "local search", **_FILTERED}),
    # Recovery: what needs no training; one run over the set, at last with half of the rank frozen
    # for the configuration at hand; a run for each budget.
    _recovery("quantized", all_frozen, trained=False, has_rank=False),
    _recovery("bias correction", all_frozen, _CORRECTED, trained=False, has_rank=False),
    _recovery("closed form", all_frozen, _CALIBRATED, trained=False),
    _recovery("in order, outputs", all_frozen, trained=False, fitter=in_order(**_OUTPUTS, **_EVEN)),
    _recovery("in order, residuals", all_frozen, trained=False, fitter=_ALIKE),
    _recovery("in order, even ranks", all_frozen, trained=False, fitter=in_order(**_EVEN)),
    _recovery("in order", all_frozen, trained=False, fitter=in_order()),
    _recovery("in order, polished", all_frozen, trained=False, fitter=in_order(25)),
    _recovery("in order, compensated", all_frozen, trained=False, fitter=_COMPENSATED),
    _recovery(
        "in order, compensated, polished",
        all_frozen,
        trained=False,
        fitter=in_order(25, compensated=True),
    ),
    _recovery("Shared-LoRA", adapter=_PLAIN),
    _recovery("CoA-LoRA, as published", adapter={"start": "svd"}),
    _recovery("CoA-LoRA", adapter=_WHOLE),
    _recovery("CoA-LoRA, no network", adapter=_WHOLE | _NO_NETWORK),
    _recovery("CoA-LoRA, walk", adapter=_WHOLE, search={"strategy": "walk", **_FILTERED}),
    _recovery("CoA-LoRA, random", adapter=_WHOLE, search={"strategy": "random", **_FILTERED}),
    _recovery("calibrated, Shared-LoRA", half_frozen, _CALIBRATED | _PLAIN),
    _recovery("calibrated, CoA-LoRA", half_frozen, _CALIBRATED | _NETWORK),
    _recovery("in order, Shared-LoRA", half_frozen, _PLAIN, fitter=in_order()),
    _recovery("in order, CoA-LoRA", half_frozen, _NETWORK, fitter=in_order()),
    replace(_LQ, group="recovery"),
    _recovery("QLoRA", adapter=_PLAIN, trains_on="budget"),
    _recovery("alone", adapter=_PLAIN | _CORRECTED, trains_on="arbitrary"),
)
_ALSO_SENSITIVE = ("bias correction", "in order", "in order, polished", "Shared-LoRA", "LQ-LoRA")
_ALL += tuple(
    replace(each, label=f"{each.label}, by sensitivity", sensitive=True)
    for each in _ALL
    if each.group == "recovery" and each.label in _ALSO_SENSITIVE
)
_DEPLOYED = (
    "quantized",
    "bias correction",
    "in order",
    "in order, polished",
    "Shared-LoRA",
    "CoA-LoRA",
    "calibrated, CoA-LoRA",
    "in order, CoA-LoRA",
)
_ALL += tuple(
    replace(each, group="deployment", space="gguf")
    for each in _ALL
    if each.group == "recovery" and each.label in _DEPLOYED
)
_ALL += (
    Method(
        "Q4_0 alone", coa_lora, adapter=_PLAIN, uniform="Q4_0", space="gguf", group="deployment"
    ),
)
#: Every method by its slug, in the order of tables.
METHODS = {method.slug: method for method in _ALL}


def methods_of(*groups: str) -> dict[str, Method]:
    """The methods of some groups by slug, in the order of tables."""
    return {slug: method for slug, method in METHODS.items() if method.group in groups}


def labels_of(*groups: str) -> dict[str, str]:
    """The labels of some groups' methods by slug, in the order of tables."""
    return {slug: method.label for slug, method in methods_of(*groups).items()}


def compared_for(profile: Profile) -> list[str]:
    """The methods that are compared on a profile's kind of task."""
    methods = methods_of("main", "fitted", "recovery")
    return [slug for slug, each in methods.items() if profile.kind in each.experiment.kinds]


def ablations_of(profile: Profile) -> list[str]:
    """The ablations, without the one whose number of configurations per step is the profile's own:
    it would equal the whole method."""
    same = {"configurations_per_step": profile.configurations_per_step}
    return [slug for slug, method in methods_of("ablation").items() if method.plan != same]
