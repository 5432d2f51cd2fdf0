"""The steps of attaching: what is refused, and which adjuster is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coalora_lib.adapter.adjusters import Adjuster, FactorBank
from coalora_lib.adapter.encoding import ConfigurationEncoder, ContinuousMeasures, describe_layers
from coalora_lib.adapter.hypernetwork import HyperNetwork
from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.settings import AdapterSettings
from coalora_lib.spaces import ConfigurationSpace


def check_means(
    settings: AdapterSettings,
    names: Sequence[str],
    linears: Sequence[nn.Linear | Conv1D],
    mean_inputs: Mapping[str, Tensor] | None,
) -> None:
    """Refuse mean inputs that are missing, not wanted, or do not fit.

    Raises:
        ValueError: the layer is named.
    """
    wanted = settings.bias_correction
    if wanted != (mean_inputs is not None):
        raise ValueError(
            f"bias_correction={wanted} {'needs' if wanted else 'has no use for'} mean_inputs"
        )
    if mean_inputs is None:
        return
    for name, linear in zip(names, linears, strict=True):
        width = linear.weight.shape[0 if isinstance(linear, Conv1D) else 1]
        if name not in mean_inputs or mean_inputs[name].shape != (width,):
            raise ValueError(f"mean_inputs[{name!r}] must be ({width},)")


def check_rank(
    settings: AdapterSettings, names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> None:
    """Refuse a start that needs more singular values than a weight has.

    Raises:
        ValueError: the layer is named.
    """
    wanted = settings.rank if settings.start == "svd" else settings.frozen_rank
    for name, shape in zip(names, shapes, strict=True) if settings.start != "zero" else ():
        if wanted > min(shape):
            raise ValueError(
                f"start={settings.start!r} needs {wanted} singular values; {name} of shape "
                f"{shape} has {min(shape)}. Allowed: a smaller rank, or start='zero'"
            )


def new_adjuster(
    settings: AdapterSettings,
    space: ConfigurationSpace,
    layers: AdaptedLayers,
    errors: Callable[[], Tensor],
) -> Adjuster:
    """The adjuster that the settings ask for, where LoRA's factors are and of their dtype.

    Args:
        settings: of the model.
        space: of its configurations.
        layers: whose own factors are frozen where the adjuster brings others.
        errors: gives the (layers, choices) error table, which ``error_features`` read.
    """
    factors = layers.factors()
    if settings.adjuster == "none":
        return Adjuster()
    if settings.adjuster == "bank":
        layers.freeze_factors()
        return FactorBank(space.cardinalities[0], factors)
    measures = None
    if settings.error_features:
        measures = ContinuousMeasures(errors(), layers.pretrained, space)
    places = describe_layers(list(layers.quantized))
    network = HyperNetwork(
        ConfigurationEncoder(places, space, settings.width, measures),
        settings.rank,
        [each.l2.shape[1] for each in factors],
        settings.hidden,
        settings.learned_scale,
        settings.output_bias,
    )
    return network.to(factors[0].l2.device, factors[0].l2.dtype)


def refuse_inner_save(*_: Any, **__: Any) -> None:
    """What takes the place of the inner PEFT model's ``save_pretrained``.

    Raises:
        RuntimeError: always; it says what to call instead.
    """
    raise RuntimeError(
        "the inner PEFT model holds LoRA without its adjustment; call CoaLora.save_pretrained for "
        "the whole method, or CoaLora.export_peft_adapter for one configuration"
    )
