"""The folder of a batch: results, and files to continue it and to see why jobs failed.

<name>.json, .ipynb      results, written whole or not at all
logs/<name>.log          why a job failed: one line, then all that is known
failed/<name>.ipynb      what a failed chapter had made
.claims/<name>.lock      held by the batch that runs a job
.scratch/<name>/         checkpoints of jobs that are not done
.scratch/token           by which a worker knows that it sees the same folder
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from coalora_lib.batch.claims import Claim
from coalora_lib.batch.jobs import BatchJob
from coalora_lib.files import atomic_file
from coalora_lib.validation import flat

SCRATCH, TOKEN = ".scratch", "token"
#: Free bytes below which a batch is not begun.
LEAST_SPACE = 2**20
#: The longest result that is looked at, in bytes: notebooks hold pictures.
MOST_BYTES = 2**27


class NotWritten(RuntimeError):
    """Results were made and could not be written where they belong."""


class ResultFolder:
    """A folder of results, with the notes on its jobs.

    Raises:
        OSError: it cannot be made or written into, or is full.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._token.parent.mkdir(exist_ok=True)
            if not self._token.is_file():
                with atomic_file(self._token) as partial:
                    partial.write_text(secrets.token_hex(16))
            self.probe()
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            reason = "a file is in its place" if self.path.is_file() else error.strerror
            raise OSError(f"no results can be written into {self.path}: {reason}") from None
        if free < LEAST_SPACE:
            raise OSError(f"no results can be written into {self.path}: {free} bytes are free")

    @property
    def _token(self) -> Path:
        return self.path / SCRATCH / TOKEN

    @property
    def token(self) -> str:
        """Read each time: of two batches that begin together one may have replaced it."""
        try:
            return self._token.read_text()
        except OSError:  # the folder is gone, which writing a result will tell
            return ""

    def _require(self) -> None:
        """OSError unless this is still the folder that the batch began with.

        A folder that was moved, or whose disk is away, may have another in its place: the empty
        one that the disk was mounted on, or one that a running job made for its checkpoints.
        """
        if not self._token.is_file():
            raise FileNotFoundError(errno.ENOENT, "it is gone, or another is in its place")

    def probe(self) -> None:
        """Write a little, and remove it; OSError if that cannot be."""
        self._require()
        with tempfile.TemporaryFile(dir=self.path) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())

    def claim(self, job: BatchJob) -> Claim | None:
        """As :meth:`Claim.take`."""
        self._require()
        return Claim.take(self.path, job.name)

    def fault(self, job: BatchJob) -> str | None:
        """Why the existing file is not the result; "" without a file, None if it is the result."""
        path = self.path / job.file
        try:
            size = path.stat().st_size
            if size > MOST_BYTES:
                return f"it has {size} bytes, at most {MOST_BYTES} are read"
            job.check(path.read_bytes())
        except FileNotFoundError:
            return ""
        except (ValueError, OSError) as error:
            return flat(error)
        return None

    def failed_earlier(self, job: BatchJob) -> str:
        """The error that an earlier batch ended with, "" if none did."""
        try:
            with self._log(job).open(errors="replace") as file:
                return file.readline().strip() or "without a word"
        except OSError:
            return ""

    def write(self, job: BatchJob, content: bytes) -> None:
        """Write a whole result and remove the job's own files; OSError if this is not possible."""
        self._require()
        with atomic_file(self.path / job.file) as partial:
            partial.write_bytes(content)
        self.forget(job)
        self._log(job).unlink(missing_ok=True)
        self.kept(job).unlink(missing_ok=True)

    def note_failure(self, job: BatchJob, log: str, kept: bytes | None) -> None:
        """Keep why a job failed and what it left, as far as that can be written."""
        for path, content in ((self._log(job), log.encode()), (self.kept(job), kept)):
            with suppress(OSError):  # the batch says it too
                if content is not None:
                    path.parent.mkdir(exist_ok=True)
                    with atomic_file(path) as partial:
                        partial.write_bytes(content)

    def forget(self, job: BatchJob) -> None:
        """Remove a job's checkpoints."""
        shutil.rmtree(self.path / SCRATCH / job.name, ignore_errors=True)

    def kept(self, job: BatchJob) -> Path:
        """Where what a failed job left is kept."""
        return kept_path(self.path, job)

    def _log(self, job: BatchJob) -> Path:
        return self.path / "logs" / f"{job.name}.log"


def kept_path(folder: Path, job: BatchJob) -> Path:
    """The place for the remains of a failed job, in a results' folder."""
    return folder / "failed" / f"{job.name}{Path(job.kept or '').suffix}"
