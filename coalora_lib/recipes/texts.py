"""A run's texts: its tables as data sets with the columns that its kind of task reads."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, List, Value
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coalora_lib.adapter import CoaLora
from coalora_lib.kinds import get_kind
from coalora_lib.recipes.folder import Settings
from coalora_lib.tasks import from_table
from coalora_lib.tasks.lines import COMPRESSED, read_lines
from coalora_lib.tasks.models import model_config

#: The kinds of task that a table of texts serves.
OF_TABLES = (
    "single-label", "several-labels", "regression", "causal-lm", "masked-lm", "seq2seq",
)  # fmt: skip
#: Part of the rows that is held out where no other table is given.
HELD_OUT = 0.1
#: Texts that what was fitted is measured on, at most; a fifth of few.
OTHERS, FIFTH = 256, 5


def longest(
    max_length: int, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | CoaLora
) -> int:
    """Tokens at which texts are cut: what is asked for, at most what tokenizer and model take."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return min(max_length, tokenizer.model_max_length)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # In models like RoBERTa padding has a position, and texts begin after it.
            positions -= 0 if module.padding_idx is None else module.padding_idx + 1
    return min(max_length, tokenizer.model_max_length, positions)


def kind_of_texts(settings: Settings, split: Dataset) -> str:
    """The given kind, or that of the labels and the model.

    Raises:
        ValueError: it is not for tables, needs labels that are missing or others than there are,
            or cannot be told.
    """
    label = split.features.get("label")
    of_labels = {ClassLabel: "single-label", List: "several-labels", Value: "regression"}
    told = of_labels.get(type(label))
    wanted = settings.kind or told
    if wanted is None:
        names = model_config(settings.model).architectures or []
        if not any(name.endswith(("CausalLM", "LMHeadModel")) for name in names):
            raise ValueError(
                "without label= the kind of task is not known; give kind= (allowed: "
                f"{', '.join(OF_TABLES)})"
            )
        return "causal-lm"
    if get_kind(wanted).name not in OF_TABLES:
        raise ValueError(f"kind={wanted!r} is not for tables; allowed: {', '.join(OF_TABLES)}")
    if wanted in of_labels.values() and wanted != told:
        raise ValueError(
            f"kind={wanted!r} does not fit the column {settings.label!r}, which is read as "
            f"{told or 'no labels'}"
        )
    return wanted


def read_texts(path: str, settings: Settings, classes: Any = None) -> Dataset:
    """A table as a data set, its labels read as ``classes`` (of another table) if given."""
    if settings.kind == "regression" and classes is None:
        classes = Value("float32")
    label = None if settings.kind in ("causal-lm", "masked-lm", "seq2seq") else settings.label
    return from_table(path, settings.text, label, settings.second, classes)


def prepared(split: Dataset, kind: str) -> Dataset:
    """With the columns that the kind reads."""
    if kind == "several-labels":
        names = split.features["label"].feature.names
        rows = []
        for numbers in split["label"]:
            row = torch.zeros(len(names))
            row[list(numbers)] = 1
            rows.append(row.tolist())
        return split.remove_columns("label").add_column("label", rows)
    return split.rename_column("second", "target") if kind == "seq2seq" else split


def class_names(split: Dataset) -> list[str] | None:
    """The names of the classes; None without classes."""
    label = split.features.get("label")
    if isinstance(label, List):
        label = label.feature
    return list(label.names) if isinstance(label, ClassLabel) else None


def held_out(split: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train on, and a tenth that is held out, one at least.

    Raises:
        ValueError: there are fewer than two rows.
    """
    if len(split) < 2:
        raise ValueError(
            f"{len(split)} row is not enough: some rows are trained on, others are held out"
        )
    shuffled = split.shuffle(seed=seed)
    count = max(1, round(HELD_OUT * len(split)))
    return shuffled.select(range(count, len(split))), shuffled.select(range(count))


def plain_texts(path: str | Path, column: str) -> list[str]:
    """The texts of a file: one a line of a .txt, blank ones left out, or a column of a table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are no texts in it, or as :func:`~coalora_lib.tasks.from_table` says.
    """
    path = Path(path).expanduser()
    kinds = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    if kinds[-1:] != [".txt"]:
        return list(from_table(path, column)["sentence"])
    texts = [line.rstrip("\r\n") for line in read_lines(path) if line.strip()]
    if not texts:
        raise ValueError(f"{path}: there are no texts")
    return texts


def drawn(texts: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """Distinct texts in a random order: at most ``count`` to fit on, and others to measure on.

    Raises:
        ValueError: there are fewer than two.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2:
        raise ValueError(
            f"{len(distinct)} text is not enough: some texts are fitted on, others are measured on"
        )
    random.Random(seed).shuffle(distinct)
    others = min(OTHERS, max(1, len(distinct) // FIFTH))
    return distinct[others : others + count], distinct[:others]
