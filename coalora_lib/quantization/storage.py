"""Quantized tensors on disk: one safetensors file, read on any machine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from coalora_lib.files import atomic_file
from coalora_lib.quantization.blockwise import QuantizedTensor
from coalora_lib.quantization.choices import SCALE_DTYPES, BlockwiseChoice
from coalora_lib.validation import describe, flat

#: Marks a file as ours, and says how to read it.
FORMAT = "coalora-quantized-2"


class Stored(BaseModel):
    """A file's description of a tensor."""

    model_config = ConfigDict(extra="forbid")

    choice: dict[str, Any]
    shape: list[Annotated[int, Field(ge=0, le=2**40, strict=True)]]
    dtype: Literal["float16", "bfloat16", "float32", "float64"]


def save_quantized(path: str | Path, tensors: Mapping[str, QuantizedTensor]) -> Path:
    """Write quantized tensors by name into a file, whole or not at all."""
    path = Path(path)
    stored = {
        f"{name}.{part}": tensor.contiguous()
        for name, quantized in tensors.items()
        for part, tensor in quantized.tensors()
    }
    about = {
        name: {
            "choice": asdict(quantized.choice),
            "shape": list(quantized.shape),
            "dtype": str(quantized.dtype).removeprefix("torch."),
        }
        for name, quantized in tensors.items()
    }
    with atomic_file(path) as partial:
        save_file(stored, partial, {"format": FORMAT, "tensors": json.dumps(about)})
    return path


def load_quantized(
    path: str | Path, device: torch.device | str = "cpu"
) -> dict[str, QuantizedTensor]:
    """Read what :func:`save_quantized` wrote, onto a device.

    FileNotFoundError if there is no such file. ValueError if it is not such a file, is cut short,
    or a part of a tensor is missing or has another size or dtype than its choice says; both are
    named.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} does not hold quantized tensors ({FORMAT})")
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {flat(error):.300}") from None
    loaded = {}
    try:
        described = TypeAdapter(dict[str, Stored]).validate_json(metadata.get("tensors", ""))
    except ValidationError as error:
        raise ValueError(f"{path}: its description of the tensors: {describe(error)}") from None
    for name, about in described.items():
        try:
            loaded[name] = _assemble(name, about, stored)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: tensor {flat(name):.200} is damaged: {flat(error):.200}"
            ) from None
    return loaded


def _assemble(name: str, about: Stored, stored: Mapping[str, torch.Tensor]) -> QuantizedTensor:
    """One tensor from its parts, whose names begin with its own."""
    start = f"{name}."
    parts = {n.removeprefix(start): part for n, part in stored.items() if n.startswith(start)}
    choice, shape = BlockwiseChoice(**about.choice), torch.Size(about.shape)
    return assemble(parts, choice, shape, getattr(torch, about.dtype))


def assemble(
    stored: Mapping[str, torch.Tensor],
    choice: BlockwiseChoice,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> QuantizedTensor:
    """A quantized tensor from its parts; ValueError if a part does not fit the choice."""
    shape = torch.Size(shape)
    scales = SCALE_DTYPES[choice.scale_dtype]
    codes, scale_codes, groups = choice.stored_elements(shape.numel())
    expected = {
        "codes": (torch.uint8, (codes,)),
        "scale_codes": (torch.uint8, (scale_codes,)),
        "group_scales": (scales, (groups,)),
        "offset": (torch.float32, ()),
    }
    parts = {}
    for part, wanted in expected.items():
        tensor = stored.get(part)
        found = None if tensor is None else (tensor.dtype, tuple(tensor.shape))
        if tensor is None or found != wanted:
            raise ValueError(f"{part} is {found}, expected {wanted}")
        parts[part] = tensor
    return QuantizedTensor(**parts, choice=choice, shape=shape, dtype=dtype)
