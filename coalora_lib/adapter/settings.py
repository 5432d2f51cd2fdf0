"""What one may choose when attaching the adapter, in a form that is saved with it."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coalora_lib.validation import describe

#: Starts with a frozen low-rank term in every quantized weight.
FROZEN_STARTS = ("residual", "calibrated")
#: Where the factors begin.
Start = Literal["zero", "svd", "residual", "calibrated"]


class AdapterSettings(BaseModel):
    """The choices behind a :class:`~coalora_lib.adapter.CoaLora`.

    Attributes:
        rank: r of the trained LoRA factors.
        alpha: the LoRA output is scaled by alpha / rank.
        start: where the factors begin. "zero": L1 is zero, as in plain LoRA. "svd": L1 L2 is the
            best rank-r approximation of W - Q(W; c) under one reference configuration (the
            paper's start). "residual": every quantized weight carries the best low-rank
            approximation of its own residual, frozen, beside a trained pair that starts as "zero".
            "calibrated": the frozen term is the one with the least expected output error instead,
            from second moments of the layer's inputs (:mod:`coalora_lib.calibration`).
        frozen_rank: rank of that frozen term; ``rank`` by default. It counts as rank when the
            adapter is exported.
        adjuster: what makes LoRA follow the configuration. "hypernetwork": the paper's U. "bank":
            factors for each bit width (:class:`~coalora_lib.adapter.FactorBank`). "none": the same
            LoRA for every configuration (Shared-LoRA), or QLoRA when it is trained on one.
        space: name of the space of the configurations.
        errors: where the error table is from, which is measured when it is first asked for.
            "estimated": from a sample, see :func:`~coalora_lib.allocation.error_table` for how
            good it is. "exact": from all weights. "given": the caller brought it.
        error_features: the encoding also holds the layer's log relative error and the bits of
            layer and model (:class:`~coalora_lib.adapter.encoding.ContinuousMeasures`).
        bias_correction: every layer's output gets back what quantization takes from its mean,
            (W - Q) E[x] (Nagel et al. 2019, arXiv 1906.04721, section 4.2); E[x] is measured on
            data, see :func:`~coalora_lib.training.mean_inputs`.
        learned_scale, output_bias: see :class:`~coalora_lib.adapter.HyperNetwork`.
        width, hidden: of each embedding, and of the hidden layer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(16, ge=1, le=2**20)
    alpha: float = Field(16, gt=0)
    start: Start = "zero"
    frozen_rank: int | None = Field(None, ge=1, le=2**20)
    adjuster: Literal["hypernetwork", "bank", "none"] = "hypernetwork"
    space: str = "nf"
    errors: Literal["estimated", "exact", "given"] = "estimated"
    error_features: bool = False
    bias_correction: bool = False
    learned_scale: bool = False
    output_bias: bool = False
    width: int = Field(8, ge=1, le=2**12)
    hidden: int = Field(128, ge=1, le=2**14)

    @model_validator(mode="after")
    def _bank_starts_from_zero(self) -> Self:
        if self.adjuster == "bank" and self.start != "zero":
            raise ValueError(f"start={self.start!r} is not for adjuster='bank'; allowed: 'zero'")
        return self

    #: Parts trained in full by path; None for those that are found.
    heads: tuple[str, ...] | None = None
    #: Which layers to adapt, see :func:`~coalora_lib.adapter.adaptable_layers`.
    target_layers: tuple[str, ...] | str | None = None

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Settings of these values; ValueError if one is not known or not allowed, on one line."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ValueError(describe(error)) from None

    @property
    def rank_of_frozen_term(self) -> int:
        """0 where the start has none."""
        if self.start not in FROZEN_STARTS:
            return 0
        return self.frozen_rank or self.rank

    def check(
        self,
        linears: Mapping[str, nn.Linear | Conv1D],
        mean_inputs: Mapping[str, Tensor] | None,
        second_moments: Mapping[str, Tensor] | None,
    ) -> None:
        """Refuse moments and a start that do not fit the layers: ValueError."""
        calibrated = self.start == "calibrated"
        for setting, wanted, what, given in (
            ("bias_correction", self.bias_correction, "mean_inputs", mean_inputs),
            ("start", calibrated, "second_moments", second_moments),
        ):
            if wanted != (given is not None):
                verb = "needs" if wanted else "has no use for"
                raise ValueError(f"{setting}={getattr(self, setting)!r} {verb} {what}")
        needed = self.rank if self.start == "svd" else self.rank_of_frozen_term
        for name, linear in linears.items():
            shape = tuple(linear.weight.shape)
            width = shape[0 if isinstance(linear, Conv1D) else 1]
            for what, given, expected in (
                ("mean_inputs", mean_inputs, (width,)),
                ("second_moments", second_moments, (width, width)),
            ):
                found = None if given is None else given.get(name)
                if given is not None and (found is None or found.shape != expected):
                    raise ValueError(f"{what}[{name!r}] must be {expected}")
            if needed > min(shape):
                raise ValueError(
                    f"start={self.start!r} needs {needed} singular values; {name} of shape "
                    f"{shape} has {min(shape)}. Allowed: a smaller rank, or start='zero'"
                )
