"""The line that says what a chapter's numbers were made from."""

from __future__ import annotations

import torch

from coalora_lib.experiments import Run
from coalora_lib.records.environment import PACKAGES, versions
from coalora_lib.tasks import TaskSplits, checkpoint_checksum, data_checksum


def provenance(run: Run, splits: TaskSplits | None = None) -> str:
    """Data, model, profile, seed, device and versions of a chapter.

    Args:
        run: the chapter's parameters.
        splits: its data, if it has any.
    """
    parts = []
    if splits is not None:
        name = "generated phrases (synthetic)" if run.dataset == "embedded" else run.dataset
        parts.append(f"Data: {name}, sha256 {data_checksum(splits)[:12]}")
    checksum = checkpoint_checksum(run.profile.model)[:12]
    parts.append(f"Model: {run.profile.model}, sha256 {checksum}")
    parts.append(f"Profile: {run.profile.name}, seed {run.seed}")
    device = "GPU" if torch.cuda.is_available() else "CPU"
    packages = ", ".join(f"{name} {versions()[name]}" for name in PACKAGES[:3])
    parts.append(f"Device: {device}; {packages}")
    return "\n".join(parts)
