"""Where a record came from: versions, device, commit, code. Nothing of it is compared."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

#: What chapters show, and all packages whose versions decide what a run computes.
SHOWN = ("torch", "transformers", "peft")
PACKAGES = (*SHOWN, "accelerate", "datasets", "botorch", "gpytorch", "scipy")


def versions() -> dict[str, str]:
    """Versions of :data:`PACKAGES`, without the mark of a local build."""
    return {name: version(name).partition("+")[0] for name in PACKAGES}


def device_name() -> str:
    """The GPU's name, or the processor's kind and how many threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def code_digest() -> str:
    """sha256 over the library's own files: which code made a record, committed or not."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def git_commit() -> str | None:
    """The checked-out commit, "-dirty" if tracked files differ from it; None outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
