"""Checkpoint folders: files with all that a stopped run needs to continue exactly.

.. code-block:: text

    step-00001200-1/         one checkpoint; it appears whole, and its name sorts by progress
        state.safetensors    the run's tensors
        state.json           its other values, which run it is, and checksums of both files
    .lock                    held by the training that writes here
"""

import os
import re
import shutil
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from coalora_lib.files import atomic_folder, seal, sha256_of, try_lock, unseal
from coalora_lib.validation import flat

VALUES, TENSORS, LOCK = "state.json", "state.safetensors", ".lock"
#: In state.json beside a run's values: which run it is of, and the checksum of its tensors.
OWN = ("run", "tensors_sha256")
#: Stands in state.json before the name of a tensor.
TENSOR = "tensor"
#: The newest, and one before it should the newest turn out to be damaged.
KEPT = 2


class State(NamedTuple):
    """A run's state as it is stored: what JSON holds, and tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Self:
        """Of nested dictionaries and lists, whose tensors are named by their paths."""
        tensors: dict[str, Tensor] = {}

        def named(value: Any, path: str) -> Any:
            if isinstance(value, Tensor):
                tensors[path] = value
                return {TENSOR: path}
            if isinstance(value, dict):
                return {str(key): named(each, f"{path}.{key}") for key, each in value.items()}
            if isinstance(value, list):
                return [named(each, f"{path}.{place}") for place, each in enumerate(value)]
            return value

        return cls({key: named(each, key) for key, each in tree.items()}, tensors)

    def tree(self) -> Any:
        """The inverse of :meth:`of`; all keys are texts, as in JSON.

        Raises:
            ValueError: a tensor is named that is not there.
        """

        def filled(value: Any) -> Any:
            if isinstance(value, list):
                return [filled(each) for each in value]
            if not isinstance(value, dict):
                return value
            if value.keys() == {TENSOR}:
                if not isinstance(name := value[TENSOR], str) or name not in self.tensors:
                    raise ValueError(f"there is no tensor {name!r:.80}")
                return self.tensors[name]
            return {key: filled(each) for key, each in value.items()}

        return filled(self.values)


class CheckpointFolder:
    """A folder of one run's checkpoints; only one training at a time writes into it.

    ``run`` has the values, as in JSON, that a checkpoint of this run must have.
    """

    def __init__(self, path: str | Path, run: dict[str, Any]) -> None:
        self.path = Path(path)
        self._run = unseal(seal(run))  # as it looks when it was written: tuples are lists
        self._held = ExitStack()

    def open(self) -> None:
        """Get ready to write: make the folder, lock it, remove what a killed run left unfinished.

        OSError or RuntimeError if the folder cannot be written into, or another training does.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            reason = "a file is in its place" if os.path.isfile(self.path) else error.strerror
            raise type(error)(
                error.errno, f"no checkpoints can be written into {self.path}: {reason}"
            ) from error
        held = try_lock(self.path / LOCK)
        if held is None:
            holder = (self.path / LOCK).read_text().strip()
            raise RuntimeError(
                f"{self.path} is in use by another training (process {holder}); give another "
                "folder, or wait until it ends"
            )
        self._held.callback(held.close)
        for leftover in self.path.glob(".step-*"):
            shutil.rmtree(leftover)

    def close(self) -> None:
        """Let go of the lock, if it is held."""
        self._held.close()

    def save(self, name: str, state: State) -> None:
        """Write a checkpoint; one of that name that is there is of the same state and stays."""
        path = self.path / name
        if path.exists():
            return
        with atomic_folder(path, VALUES, (TENSORS,)) as partial:
            tensors = {n: t.detach().cpu().contiguous() for n, t in state.tensors.items()}
            save_file(tensors, partial / TENSORS)
            own = dict(zip(OWN, (self._run, sha256_of(partial / TENSORS)), strict=True))
            (partial / VALUES).write_text(seal(state.values | own))
        for old in list_checkpoints(self.path)[:-KEPT]:
            shutil.rmtree(old)

    def newest(self) -> Path | None:
        """The newest whole checkpoint; ValueError if it is of another run.

        A damaged one is named in a warning and put aside.
        """
        for path in reversed(list_checkpoints(self.path)):
            try:
                content = unseal((path / VALUES).read_text())
                if not isinstance(content.get("run"), dict):
                    raise ValueError(f"{VALUES} does not name its run")
                if sha256_of(path / TENSORS) != content.get("tensors_sha256"):
                    raise ValueError(f"{TENSORS} was changed: its sha256 is not the recorded one")
            except (ValueError, OSError) as error:
                self._put_aside(path, error)
                continue
            self._refuse_another_run(path, content["run"])
            return path
        return None

    def read(self, path: Path) -> State:
        """What a checkpoint that :meth:`newest` found holds.

        Raises:
            ValueError: its tensors are not in the form of safetensors.
        """
        values = unseal((path / VALUES).read_text())
        try:
            tensors = load_file(path / TENSORS)
        except SafetensorError as error:
            raise ValueError(f"{TENSORS} is not a safetensors file: {flat(error):.300}") from None
        return State({n: v for n, v in values.items() if n not in OWN}, tensors)

    def _put_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        warnings.warn(
            f"checkpoint {path} is not used: {error}; it was renamed to {aside.name}",
            stacklevel=2,
        )

    def _refuse_another_run(self, path: Path, theirs: dict[str, Any]) -> None:
        for name, ours in self._run.items():
            there = theirs.get(name)
            if there == ours:
                continue
            differing = name
            if isinstance(ours, dict) and isinstance(there, dict):
                keys = sorted(ours.keys() | there.keys())
                key = next(k for k in keys if ours.get(k, ...) != there.get(k, ...))
                values = f"{there.get(key)!r:.80} there, {ours.get(key)!r:.80}"
                differing = f"{name}, {flat(key):.80}: {values}"
            raise ValueError(
                f"checkpoint {path} is of another run ({differing}); give another "
                "folder, or remove it to start again"
            )


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}-\d+", path.name))
