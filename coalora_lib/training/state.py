"""The parts of a run's state as tensors and plain values, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from coalora_lib.search import Round
from coalora_lib.training.evaluation import Examples


def rounds_state(rounds: Sequence[Round]) -> tuple[dict[str, Tensor], list[int]]:
    """Searches as tensors, "<number>.<field>", and how many rows each proposed."""
    tensors: dict[str, Tensor] = {}
    proposed = []
    for number, each in enumerate(rounds):
        values = vars(each).copy()
        proposed.append(values.pop("proposed"))
        tensors |= {f"{number}.{name}": value for name, value in values.items()}
    return tensors, proposed


def load_rounds(tensors: dict[str, Tensor], proposed: Sequence[int]) -> list[Round]:
    """The searches that :func:`rounds_state` took apart."""
    return [
        Round(**under(tensors, f"{number}."), proposed=count)
        for number, count in enumerate(proposed)
    ]


def prefixed(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """The same values, their names behind a prefix."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def under(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The values whose names begin with a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def data_digest(examples: Examples, flat: Tensor | None) -> str:
    """sha256 over the tokens, their labels and the first training set, (n, fields * layers)."""
    digest = hashlib.sha256()
    for name in ("input_ids", "labels"):
        joined = torch.cat([example[name].reshape(-1) for example in examples])
        digest.update(joined.numpy().data)
    if flat is not None:
        digest.update(flat.flatten().numpy().data)
    return digest.hexdigest()
