"""The whole method in one folder, and back::

    coalora.json            base model (class, name, checksum, dtype), settings (they say whether
                            the error table is estimated), layers, current configuration, training
                            set, checksum of the weights
    config.json             the base model's configuration
    coalora.safetensors     LoRA factors, hypernetwork, head; errors and moments if measured
    fitted.safetensors      what was fitted for whole configurations, if anything
    quantized.safetensors   packed weights under the current configuration, if asked for

The base model's weights stay where they are: they are named, and recognised by checksum.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from coalora_lib.adapter.checksum import base_checksum
from coalora_lib.adapter.fitted import FITTED, FittedRows
from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.adapter.settings import AdapterSettings
from coalora_lib.files import atomic_folder, check_files, seal, sha256_of, unseal
from coalora_lib.packaged import full_name, locate
from coalora_lib.quantization import QuantizedTensor, save_quantized
from coalora_lib.spaces import get_space
from coalora_lib.validation import describe, flat

DESCRIPTION, CONFIG = "coalora.json", "config.json"
WEIGHTS, QUANTIZED = "coalora.safetensors", "quantized.safetensors"
#: Name of the error table among the tensors; parameters have dots in their names.
ERRORS = "errors"
#: What the names of mean inputs begin with; the layer's follows.
MEANS = "mean_inputs."
#: What the names of second moments begin with; the layers that share one follow, with commas.
SECONDS = "second_moments."


class Description(BaseModel):
    """coalora.json. Configurations are rows of the space's choices, one for each layer."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["coalora-4"]
    base_class: str
    base_name: str
    base_dtype: str
    base_checksum: str
    settings: AdapterSettings
    layer_names: list[str]
    configuration: list[int] | None
    training_set: list[list[int]]
    config_sha256: str
    weights_sha256: str
    fitted: list[FittedRows] = []  #: folders written before lack it
    fitted_sha256: str | None = None  #: None where nothing was fitted


class Content(NamedTuple):
    """The tensors of a model beside its base."""

    parameters: dict[str, Tensor]  #: the trained ones by name
    errors: Tensor | None  #: (layers, choices), the error table
    mean_inputs: dict[str, Tensor]  #: by layer; empty without bias correction
    second_moments: dict[str, Tensor]  #: by layer; empty unless the start is calibrated
    fitted: dict[str, Tensor]  #: see :mod:`.fitted`; empty if nothing was fitted


class Saved(NamedTuple):
    """A folder, its coalora.json and its tensors, checked in themselves."""

    folder: Path
    description: Description
    content: Content


def write(
    folder: str | Path,
    about: Mapping[str, Any],
    content: Content,
    base: PreTrainedModel,
    weights: Mapping[str, Tensor],
    quantized: Mapping[str, QuantizedTensor],
) -> Path:
    """Write a model's whole method into a folder, replaced as a whole if it is one of ours.

    ``about`` has settings, configurations and training set, as :class:`Description` does;
    ``weights`` are the adapted layers' pre-trained ones, ``quantized`` packed ones to write too.
    FileExistsError if the folder holds something else.
    """
    tensors = dict(content.parameters)
    if content.errors is not None:
        tensors[ERRORS] = content.errors
    tensors |= {f"{MEANS}{name}": mean for name, mean in content.mean_inputs.items()}
    tensors |= _halves(content.second_moments)
    with atomic_folder(folder, DESCRIPTION, (CONFIG, WEIGHTS, FITTED, QUANTIZED)) as partial:
        _save(tensors, partial / WEIGHTS)
        if content.fitted:
            _save(content.fitted, partial / FITTED)
        base.config.save_pretrained(partial)
        description = Description(
            format="coalora-4",
            base_class=type(base).__name__,
            base_name=full_name(base.name_or_path),
            base_dtype=str(base.dtype).removeprefix("torch."),
            base_checksum=base_checksum(base, weights, about["settings"].heads),
            layer_names=list(weights),
            config_sha256=sha256_of(partial / CONFIG),
            weights_sha256=sha256_of(partial / WEIGHTS),
            fitted_sha256=sha256_of(partial / FITTED) if content.fitted else None,
            **about,
        )
        (partial / DESCRIPTION).write_text(seal(description.model_dump()))
        if quantized:
            save_quantized(partial / QUANTIZED, quantized)
    return Path(folder)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)


def read(folder: str | Path) -> Saved:
    """Read a folder and check it in itself.

    FileNotFoundError if it or a file is missing, ValueError if a file, which is named, is not ours
    or was altered.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(
            f"{folder} has no {DESCRIPTION}: CoaLora.save_pretrained did not write this folder"
        )
    try:
        about = Description.model_validate(unseal((folder / DESCRIPTION).read_text()))
        space = get_space(about.settings.space)
        layers = len(about.layer_names)
        of_fits = [each.rows for each in about.fitted]
        for rows in (about.configuration, *about.training_set, *of_fits):
            if rows is not None and len(space.from_rows(rows)) != layers:
                raise ValueError(f"a configuration of {len(rows)} choices for {layers} layers")
        if about.fitted_sha256 is not None and not about.fitted:
            raise ValueError(f"{FITTED} belongs to it, but it names no fitted configuration")
    except ValidationError as error:
        raise ValueError(f"{folder / DESCRIPTION} cannot be read: {describe(error)}") from None
    except ValueError as error:
        raise ValueError(f"{folder / DESCRIPTION} cannot be read: {flat(error):.300}") from None
    _check_files(folder, about)
    tensors = _load(folder / WEIGHTS)
    rank = about.settings.rank
    for name, tensor in tensors.items():
        if ".lora_A." in name and len(tensor) != rank:  # before anything of that rank is made
            raise ValueError(f"{folder / WEIGHTS}: {name} is not of rank {rank}")
    errors = tensors.pop(ERRORS, None)
    means = {n.removeprefix(MEANS): tensors.pop(n) for n in list(tensors) if n.startswith(MEANS)}
    halves = {n: tensors.pop(n) for n in list(tensors) if n.startswith(SECONDS)}
    with named(folder):
        seconds = _wholes(halves)
    fitted = _load(folder / FITTED) if about.fitted else {}
    return Saved(folder, about, Content(tensors, errors, means, seconds, fitted))


def _check_files(folder: Path, about: Description) -> None:
    """Refuse files that are missing or not those that the description was written with."""
    recorded: dict[str, str | None] = {WEIGHTS: about.weights_sha256, CONFIG: about.config_sha256}
    if about.fitted:
        recorded[FITTED] = about.fitted_sha256
    check_files(folder, recorded)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {flat(error):.300}") from None
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds a number that is not finite")
    return found


def _halves(seconds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Symmetric matrices by layer as their upper triangles, each once."""
    sharing: dict[int, list[str]] = {}
    for name, second in seconds.items():
        sharing.setdefault(id(second), []).append(name)
    found = {}
    for names in sharing.values():
        second = seconds[names[0]]
        rows, columns = torch.triu_indices(*second.shape)
        found[SECONDS + ",".join(names)] = second[rows, columns]
    return found


def _wholes(halves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`_halves` was given."""
    found: dict[str, Tensor] = {}
    for names, half in halves.items():
        width = round((2 * half.numel() + 0.25) ** 0.5 - 0.5)
        if half.shape != (width * (width + 1) // 2,):
            raise ValueError(f"{names} of shape {tuple(half.shape)} is not half of a matrix")
        rows, columns = torch.triu_indices(width, width)
        whole = half.new_zeros(width, width)
        whole[rows, columns] = whole[columns, rows] = half
        found |= dict.fromkeys(names.removeprefix(SECONDS).split(","), whole)
    return found


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
    heads = about.settings.heads or ()
    names = adaptable_layers(base_model, heads, about.settings.target_layers)
    if names != about.layer_names:
        differing = sorted(set(names) ^ set(about.layer_names)) or ["their order"]
        raise ValueError(
            f"the base model's layers are not those of {saved.folder}: {differing[0]} differs"
        )
    weights = {name: base_model.get_submodule(name).weight for name in names}
    if base_checksum(base_model, weights, heads) != about.base_checksum:
        raise ValueError(
            f"the base model's weights are not those that {saved.folder} was trained over "
            f"({about.base_name}): the checksum differs"
        )
    return base_model


@contextmanager
def named(folder: Path) -> Iterator[None]:
    """Let errors of what does not fit together name the folder that it is from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_parameters(model: nn.Module, values: dict[str, Tensor], source: str) -> None:
    """Copy values into a model's parameters by name, all or none.

    They hold all of :func:`trained_parameters`, and any others.

    Raises:
        ValueError: a name or a shape differs from what ``source`` has.
    """
    parameters = dict(model.named_parameters())
    for name in sorted(trained_parameters(model).keys() | values.keys()):
        there, here = (
            tuple(each[name].shape) if name in each else None for each in (values, parameters)
        )
        if there != here:
            raise ValueError(f"{source}: {name} is {there} there and {here} in the model")
    for name, value in values.items():
        parameters[name].copy_(value)


def _load_base(saved: Saved) -> PreTrainedModel:
    about = saved.description
    named = getattr(transformers, about.base_class, None)
    if not (isinstance(named, type) and issubclass(named, PreTrainedModel)):
        raise ValueError(
            f"{saved.folder / DESCRIPTION}: {about.base_class!r:.80} is not a model "
            "class of transformers"
        )
    loader: Any = named
    try:
        model: PreTrainedModel = loader.from_pretrained(
            locate(about.base_name),
            config=AutoConfig.from_pretrained(saved.folder, trust_remote_code=False),
            dtype=getattr(torch, about.base_dtype),
            use_safetensors=True,
        )
    except OSError as error:
        raise OSError(
            f"the base model {about.base_name!r} of {saved.folder} was not found; "
            f"load it and pass it as base_model ({flat(error):.300})"
        ) from error
    except Exception as error:  # transformers checks a configuration with errors of any kind
        raise ValueError(
            f"the base model {about.base_name!r} cannot be made from {saved.folder / CONFIG}: "
            f"{flat(error):.300}"
        ) from error
    model.name_or_path = full_name(about.base_name)  # not the package that it was read from
    return model


def refuse_inner_save(*_: Any, **__: Any) -> None:
    """Stands for the inner PEFT model's ``save_pretrained``; says what to call instead."""
    raise RuntimeError(
        "the inner PEFT model holds LoRA without its adjustment; call CoaLora.save_pretrained for "
        "the whole method, or CoaLora.export_peft_adapter for one configuration"
    )
