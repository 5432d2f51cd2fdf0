"""Models by name, from a package, a folder or the hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from coalora_lib.files import sha256_of
from coalora_lib.kinds import TaskKind, get_kind
from coalora_lib.packaged import MINILM, full_name, locate
from coalora_lib.validation import flat


class Pretrained(NamedTuple):
    """A model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_classifier(
    name: str = MINILM, labels: int = 2, dtype: torch.dtype = torch.float32
) -> Pretrained:
    """Load a pre-trained encoder with a new classification head.

    The head is random: seed torch before the call. Only safetensors weights are read, and no
    code from a repository is run. The name is all-MiniLM-L6-v2 (read from its package, checksum
    verified), another name on the hub, or a local folder.

    Raises:
        ModuleNotFoundError: all-MiniLM-L6-v2 is asked for and its package is not installed.
        ValueError: the packaged weights do not have the published checksum.
        OSError: neither a folder nor a model on the hub, or no safetensors weights there.
    """
    return _load(AutoModelForSequenceClassification, name, dtype, num_labels=labels)


def load_pretrained(
    name: str, kind: str | TaskKind, dtype: torch.dtype = torch.float32, **options: Any
) -> Pretrained:
    """Load a pre-trained model for a kind of task; as :func:`load_classifier`.

    ``options`` are transformers', such as ``num_labels``. If the checkpoint's head has another
    number of labels, a new head is made.
    """
    auto = getattr(transformers, get_kind(kind).auto_class)
    return _load(auto, name, dtype, ignore_mismatched_sizes=True, **options)


def model_config(name: str) -> PretrainedConfig:
    """A model's configuration by its name.

    Raises:
        OSError: neither a folder nor a model on the hub.
        ValueError: the configuration cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(locate(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{name:.200} cannot be loaded: {flat(error):.300}") from error


def load_as_saved(name: str, dtype: torch.dtype = torch.float32) -> Pretrained:
    """Load a model of the class that it was saved as; as :func:`load_classifier`.

    Raises:
        ValueError: its configuration cannot be read, or names no model class of transformers.
        OSError: neither a folder nor a model on the hub, or no safetensors weights there.
    """
    config = model_config(name)
    saved_as = (config.architectures or ["AutoModel"])[0]
    named = getattr(transformers, saved_as, None)
    if named is not AutoModel and not (
        isinstance(named, type) and issubclass(named, PreTrainedModel)
    ):
        raise ValueError(
            f"{name:.200}: its configuration names {saved_as!r:.80}, which is not a "
            "model class of transformers"
        )
    return _load(named, name, dtype)


def _load(auto: Any, name: str, dtype: torch.dtype, **options: Any) -> Pretrained:
    folder = locate(name)
    model = auto.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
    )
    model.name_or_path = full_name(name)  # not the package: saved adapters name their base model
    return Pretrained(model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def checkpoint_checksum(name: str = MINILM) -> str:
    """sha256 of a checkpoint's safetensors file, or of its shards' digests in order."""
    folder = locate(name)
    single = cached_file(folder, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    if single is not None:
        return sha256_of(single)
    index = Path(cached_file(folder, "model.safetensors.index.json"))
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    digests = "".join(sha256_of(cached_file(folder, shard)) for shard in shards)
    return hashlib.sha256(digests.encode()).hexdigest()
