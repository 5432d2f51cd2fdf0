"""The whole method in one folder, and back.

    coalora.json            base model (class, name, checksum, dtype), settings, layers, current
                            configuration, training set, checksum of the weights
    config.json             the base model's configuration
    coalora.safetensors     LoRA factors, hypernetwork, head; the error table and the layers' mean
                            inputs if they were measured
    quantized.safetensors   packed weights under the current configuration, if asked for

The base model's weights stay where they are: they are named, and recognised by checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import transformers
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from coalora_lib.adapter.lora import HEADS, adaptable_layers
from coalora_lib.adapter.settings import AdapterSettings
from coalora_lib.configuration import LayerConfig
from coalora_lib.files import atomic_folder, seal, sha256_of, unseal
from coalora_lib.quantization import save_quantized

if TYPE_CHECKING:
    from coalora_lib.adapter.model import CoaLora

DESCRIPTION, WEIGHTS, QUANTIZED = "coalora.json", "coalora.safetensors", "quantized.safetensors"
#: Name of the error table among the tensors; parameters have dots in their names.
ERRORS = "errors"
#: What the names of mean inputs begin with; the layer's follows.
MEANS = "mean_inputs."


class Description(BaseModel):
    """coalora.json. Configurations are rows of the 432 choices, one for each layer."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["coalora-1"]
    base_class: str
    base_name: str
    base_dtype: str
    base_checksum: str
    settings: AdapterSettings
    layer_names: list[str]
    configuration: list[int] | None
    training_set: list[list[int]]
    weights_sha256: str


@dataclass(frozen=True)
class Saved:
    """A folder's content, checked in itself.

    Attributes:
        folder: where it was read from.
        description: coalora.json.
        parameters: the trained parameters by name.
        errors: the (layers, 432) error table, or None.
        mean_inputs: E[x] of each layer by name, or None.
    """

    folder: Path
    description: Description
    parameters: dict[str, Tensor]
    errors: Tensor | None
    mean_inputs: dict[str, Tensor] | None

    @property
    def settings(self) -> AdapterSettings:
        """What the model was attached with."""
        return self.description.settings


def save_pretrained(model: CoaLora, folder: str | Path, quantized: bool = False) -> Path:
    """Write a model's whole method.

    Args:
        model: left as it is.
        folder: new, empty, or written by this function before; then it is replaced as a whole.
        quantized: also write the packed weights of the current configuration.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: ``quantized`` without a current configuration.
    """
    if quantized and model.configuration is None:
        raise ValueError("no configuration is set: there are no quantized weights to write")
    base = model.model.get_base_model()
    tensors = {name: p.detach() for name, p in trained_parameters(model).items()}
    if model._errors is not None:
        tensors[ERRORS] = model.errors
    tensors |= {f"{MEANS}{name}": mean for name, mean in model.mean_inputs.items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    configuration = model.configuration
    with atomic_folder(folder, DESCRIPTION) as partial:
        save_file(tensors, partial / WEIGHTS)
        base.config.save_pretrained(partial)
        description = Description(
            format="coalora-1",
            base_class=type(base).__name__,
            base_name=base.name_or_path,
            base_dtype=str(base.dtype).removeprefix("torch."),
            base_checksum=base_checksum(base, model.pretrained_weights),
            settings=model.settings,
            layer_names=model.layer_names,
            configuration=None if configuration is None else _to_rows(configuration),
            training_set=[_to_rows(each) for each in model.training_set],
            weights_sha256=sha256_of(partial / WEIGHTS),
        )
        (partial / DESCRIPTION).write_text(seal(description.model_dump()))
        if quantized:
            compact = model.compact_weights(configuration)
            packed = {name: weight.quantized for name, weight in compact.items()}
            save_quantized(partial / QUANTIZED, packed)
    return Path(folder)


def read(folder: str | Path) -> Saved:
    """Read a folder and check it in itself.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
        ValueError: the folder is not one of ours, or a file was altered or cut short; the file is
            named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} holds no {DESCRIPTION}: CoaLora.save_pretrained wrote it not")
    for name in (WEIGHTS, "config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file")
    try:
        description = Description.model_validate(unseal((folder / DESCRIPTION).read_text()))
        for rows in (description.configuration or [], *description.training_set):
            _from_rows(rows)
    except ValueError as error:
        raise ValueError(f"{folder / DESCRIPTION} cannot be read: {error}") from None
    if sha256_of(folder / WEIGHTS) != description.weights_sha256:
        raise ValueError(f"{folder / WEIGHTS} was altered: its sha256 is not the recorded one")
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is not a safetensors file: {error}") from None
    errors = tensors.pop(ERRORS, None)
    means = {n.removeprefix(MEANS): tensors.pop(n) for n in list(tensors) if n.startswith(MEANS)}
    return Saved(folder, description, tensors, errors, means or None)


def matching_base(saved: Saved, base_model: PreTrainedModel | None) -> PreTrainedModel:
    """The base model that a folder belongs to: the one given if it is that, else loaded by name.

    Only safetensors weights are read, and no code from a repository is run.

    Raises:
        ValueError: the model is of another class or dtype, has other layers or other weights.
        OSError: it cannot be loaded by its name; hand it in as ``base_model``.
    """
    about = saved.description
    if base_model is None:
        base_model = _load_base(saved)
    found = {
        "class": (type(base_model).__name__, about.base_class),
        "dtype": (str(base_model.dtype).removeprefix("torch."), about.base_dtype),
    }
    for what, (given, recorded) in found.items():
        if given != recorded:
            raise ValueError(
                f"the base model's {what} is {given}; {saved.folder} was saved over {recorded}"
            )
    names = adaptable_layers(base_model)
    if names != about.layer_names:
        differing = sorted(set(names) ^ set(about.layer_names)) or ["their order"]
        raise ValueError(
            f"the base model's layers are not those of {saved.folder}: {differing[0]} differs"
        )
    weights = {name: base_model.get_submodule(name).weight for name in names}
    if base_checksum(base_model, weights) != about.base_checksum:
        raise ValueError(
            f"the base model's weights are not those that {saved.folder} was trained over "
            f"({about.base_name}): the checksum differs"
        )
    return base_model


def restore(saved: Saved, model: CoaLora) -> None:
    """Put what was saved into a freshly attached model.

    Raises:
        ValueError: the parameters are not the model's.
    """
    load_parameters(model, saved.parameters, str(saved.folder / WEIGHTS))
    about = saved.description
    model.training_set = [_from_rows(rows) for rows in about.training_set]
    if about.configuration is not None:
        model.set_configuration(_from_rows(about.configuration))


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_parameters(model: nn.Module, values: dict[str, Tensor], source: str) -> None:
    """Copy values into a model's trained parameters, all or none.

    Args:
        model: whose :func:`trained_parameters` they are.
        values: by name.
        source: what to call them in an error.

    Raises:
        ValueError: a name or a shape differs.
    """
    parameters = trained_parameters(model)
    for name in sorted(parameters.keys() | values.keys()):
        shapes = [
            tuple(each[name].shape) if name in each else None for each in (parameters, values)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{source}: {name} is {shapes[1]} there and {shapes[0]} in the model")
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def base_checksum(base: PreTrainedModel, weights: dict[str, Tensor]) -> str:
    """sha256 over the pre-trained parameters, the same before and after LoRA is attached.

    Heads that are trained in full are left out.

    Args:
        base: the transformers model.
        weights: the adapted layers' unquantized weights by name.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_pretrained(base, weights)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def _pretrained(base: PreTrainedModel, weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in base.named_parameters():
        parts = name.split(".")
        if any(part in HEADS or part.startswith("lora_") for part in parts):
            continue
        name = name.replace(".base_layer.", ".")
        layer, _, part = name.rpartition(".")
        yield name, weights[layer] if layer in weights and part == "weight" else parameter


def _load_base(saved: Saved) -> PreTrainedModel:
    about = saved.description
    loader = getattr(transformers, about.base_class, None)
    if not (isinstance(loader, type) and issubclass(loader, PreTrainedModel)):
        raise ValueError(f"{about.base_class!r} is no model class of transformers")
    try:
        return loader.from_pretrained(
            about.base_name,
            config=AutoConfig.from_pretrained(saved.folder, trust_remote_code=False),
            dtype=getattr(torch, about.base_dtype),
            use_safetensors=True,
        )
    except OSError as error:
        raise OSError(
            f"the base model {about.base_name!r} of {saved.folder} was not found; load it and hand "
            f"it in as base_model ({error})"
        ) from error


def _to_rows(configuration: list[LayerConfig]) -> list[int]:
    return [config.choice for config in configuration]


def _from_rows(rows: list[int]) -> list[LayerConfig]:
    space = LayerConfig.space()
    for row in rows:
        if not 0 <= row < len(space):
            raise ValueError(f"choice {row} is outside 0..{len(space) - 1}")
    return [space[row] for row in rows]
