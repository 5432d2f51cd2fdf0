"""What was fitted for whole configurations, as the tensors of a file, and back."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.quantized import Corrected, QuantizedLinear
from coalora_lib.spaces import Choice, QuantizedWeight

#: Of the folder that a model is saved in.
FITTED = "fitted.safetensors"
#: What is stored of a layer under one configuration.
PARTS = ("left", "right", "correction")
#: Between a layer's name and a part of its quantized weight, if codes were chosen for its inputs.
CODES = ".quantized."


def as_tensors(layers: AdaptedLayers) -> dict[str, Tensor]:
    """All that was fitted: tensors by the configuration's number, the layer's name and the part."""
    return {
        f"{number}.{name}{part}": tensor
        for number, states in enumerate(layers.fitted.values())
        for name, state in zip(layers.quantized, states, strict=True)
        for part, tensor in _parts(state)
    }


def _parts(state: Corrected) -> Iterator[tuple[str, Tensor]]:
    for part in PARTS:
        yield f".{part}", getattr(state, part)
    if state.quantized is not None:
        yield from ((CODES + part, tensor) for part, tensor in state.quantized.tensors())


class FittedRows(BaseModel):
    """The entry of a fitted configuration in coalora.json."""

    model_config = ConfigDict(extra="forbid")

    rows: list[int]  #: each layer's choice
    replaces: bool  #: the trained LoRA, see :class:`~coalora_lib.adapter.quantized.Corrected`
    codes: int | None = None  #: layers with codes of their own; folders written before lack it


def described(layers: AdaptedLayers) -> list[FittedRows]:
    """The configurations that were fitted, in the order of :func:`as_tensors`."""
    space = next(iter(layers.quantized.values())).space
    return [
        FittedRows(
            rows=space.to_rows(configuration),
            replaces=layers.replaced(configuration),
            codes=sum(state.quantized is not None for state in states),
        )
        for configuration, states in layers.fitted.items()
    ]


def take(
    layers: AdaptedLayers, configurations: Sequence[FittedRows], tensors: Mapping[str, Tensor]
) -> None:
    """Have layers compute with what :func:`as_tensors` gave.

    Raises:
        ValueError: a tensor is missing or not known, or is not of the layer's shape; it is named.
    """
    space = next(iter(layers.quantized.values())).space
    left, found, codes = dict(tensors), {}, _codes_by_layer(tensors)
    for number, about in enumerate(configurations):
        configuration, states = space.from_rows(about.rows), []
        for (name, layer), choice in zip(layers.quantized.items(), configuration, strict=True):
            place = f"{number}.{name}"
            names = [f"{place}.{part}" for part in PARTS]
            for each in names:
                if each not in left:
                    raise ValueError(f"{FITTED}: there is no tensor {each}")
            parts = [left.pop(each) for each in names]
            _check(names, parts, layer)
            quantized = _quantized(place, codes.get(place, {}), layer, choice)
            for part, _ in () if quantized is None else quantized.tensors():
                left.pop(place + CODES + part, None)
            state = Corrected(choice, parts[0], parts[1], parts[2], about.replaces, quantized)
            states.append(layer.moved(state))
        there = sum(state.quantized is not None for state in states)
        if about.codes not in (None, there):
            raise ValueError(
                f"{FITTED}: configuration {number} has codes for {there} layers; it was written "
                f"with codes for {about.codes}"
            )
        found[tuple(configuration)] = states
    if left:
        raise ValueError(f"{FITTED}: {min(left)!r:.200} is not a tensor of a fitted layer")
    layers.fitted = found


def _codes_by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The parts of quantized weights, by the configuration's number with the layer's name."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, between, part = name.rpartition(CODES)
        if between:
            found.setdefault(place, {})[part] = tensor
    return found


def _quantized(
    place: str, stored: Mapping[str, Tensor], layer: QuantizedLinear, choice: Choice
) -> QuantizedWeight | None:
    """The weight with these parts, or None if there are none; ValueError if one is wrong."""
    if not stored:
        return None
    try:
        return layer.assembled(choice, stored)
    except ValueError as error:
        raise ValueError(f"{FITTED}: {place}{CODES}{error}") from None


def _check(names: Sequence[str], parts: Sequence[Tensor], layer: QuantizedLinear) -> None:
    """ValueError for the first tensor whose dtype or shape is not what the layer needs."""
    rows, columns = layer.kept.shape
    rank = parts[0].shape[-1] if parts[0].ndim else 0
    expected = (rows, rank), (rank, columns), (layer.out_features,)
    for name, part, shape in zip(names, parts, expected, strict=True):
        if part.shape != shape or part.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{FITTED}: {name} is {tuple(part.shape)} in {part.dtype}; the layer needs {shape} "
                "in torch.float32 or torch.float64"
            )
