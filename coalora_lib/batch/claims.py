"""One claim for each job, so that two batches with one folder share the work.

Whether a job is claimed is the operating system's to say: neither clocks nor process numbers
decide, and what a killed batch had claimed is free at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from coalora_lib.files import try_lock

#: Below the results' folder.
CLAIMS = ".claims"


@dataclass(frozen=True)
class Claim:
    """A batch's claim on a job, until it is released or its process ends."""

    path: Path
    file: IO[str]

    @classmethod
    def take(cls, folder: Path, name: str) -> Self | None:
        """Claim a job; None if another batch has. OSError if the folder cannot be written into."""
        path = folder / CLAIMS / f"{name}.lock"
        path.parent.mkdir(exist_ok=True)
        while True:
            file = try_lock(path)
            if file is None:
                return None
            if _is_at(file, path):
                return cls(path, file)
            file.close()  # its former holder removed it between opening and locking

    def release(self) -> None:
        """Let others have the job; does nothing a second time."""
        if not self.file.closed:
            if _is_at(self.file, self.path):
                self.path.unlink()
            self.file.close()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
