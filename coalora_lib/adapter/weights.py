"""Where the pre-trained weights of adapted layers are, while their quantized forms compute."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from coalora_lib.files import atomic_folder
from coalora_lib.validation import flat

#: What is allowed, beside a path.
PLACES = ("device", "cpu", "disk")
#: See :func:`keep`.
Place = Literal["device", "cpu", "disk"] | Path
#: By which a folder that was written here is known.
MARKER = "coalora_pretrained.txt"


class PretrainedWeight:
    """The pre-trained weight of a layer, kept with the model or apart from it.

    A weight with the model moves and changes its dtype as the model does. One apart stays where it
    is, as it is, and is brought to the model's device and dtype when it is read.

    Args:
        held: the weight, not to be written to.
        apart: whether it stays where it is.
        device: of the model; by default that of ``held``.
        source: the file that ``held`` is mapped from, and the tensor's name in it.
        folder: what must live as long as the file is needed.
    """

    def __init__(
        self,
        held: Tensor,
        apart: bool = False,
        device: torch.device | None = None,
        source: tuple[Path, str] | None = None,
        folder: object = None,
    ) -> None:
        self.held, self.apart = held, apart
        self.device, self.dtype, self.shape = device or held.device, held.dtype, held.shape
        self._source, self._folder = source, folder

    @property
    def is_mapped(self) -> bool:
        """Whether the weight is in a file, of which the system loads what is read."""
        return self._source is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the weight as it is read."""
        return self.shape.numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The weight on the model's device, in its dtype; not to be written to."""
        return self.held.to(self.device, self.dtype)

    def follow(self, change: Callable[[Tensor], Tensor]) -> bool:
        """Take part in what ``.to()`` and its kin do to the model; whether that changes it."""
        if not self.apart:
            before, self.held = self.held, change(self.held)
            self.device, self.dtype = self.held.device, self.held.dtype
            return self.held is not before
        probe = change(torch.empty(0, device=self.device, dtype=self.dtype))
        changed = (self.device, self.dtype) != (probe.device, probe.dtype)
        self.device, self.dtype = probe.device, probe.dtype
        return changed

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Nobody writes into a weight that is apart, so copies of the model share it.
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        if not self.apart:
            twin.held = self.held.__deepcopy__(memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        kept = vars(self) | {"_folder": None}  # a pickle does not keep the file
        return kept | {"held": None} if self.is_mapped else kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._source is not None:
            self.held = _mapped(*self._source)


def keep(weights: Mapping[str, Tensor], place: Place) -> dict[str, PretrainedWeight]:
    """The weights of layers by name, kept at a place.

    Args:
        weights: by the layers' names, not to be written to from now on.
        place: "device": where they are. "cpu": in the processor's memory. "disk": in a temporary
            folder, mapped into memory; it is removed with the last copy of the model. A path:
            mapped from the safetensors files of a folder, as of the model's own checkpoint, which
            must hold all of these weights unchanged; or from the one file. A folder that is new or
            empty is filled.

    Raises:
        ValueError: the place is none of these, or its files lack a weight or have other values.
        FileExistsError: the path is a folder with other things.
    """
    if isinstance(place, Path):
        files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
        return dict(_from_files(weights, place, files or _write(weights, place)))
    if place not in PLACES:
        allowed = ", ".join(map(repr, PLACES))
        raise ValueError(f"pretrained={place!r:.80} is not known; allowed: {allowed}, or a Path")
    if place == "device":
        return {name: PretrainedWeight(weight) for name, weight in weights.items()}
    if place == "cpu":
        return {
            name: PretrainedWeight(weight.cpu(), apart=True, device=weight.device)
            for name, weight in weights.items()
        }
    folder = _TemporaryFolder()
    files = _write(weights, folder.path)
    return dict(_from_files(weights, folder.path, files, folder))


class ReadWeights(Mapping[str, Tensor]):
    """Weights by name, each read when it is asked for, and not held."""

    def __init__(self, kept: Mapping[str, PretrainedWeight]) -> None:
        self._kept = kept

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


class _TemporaryFolder:
    """A folder that is removed when nothing refers to this any more, or the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="coalora-"))
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a fork has the object too, but not the folder
        shutil.rmtree(folder, ignore_errors=True)


def _write(weights: Mapping[str, Tensor], folder: Path) -> list[Path]:
    """A file for each weight, so that no more than one is copied at a time."""
    with atomic_folder(folder, MARKER) as partial:
        (partial / MARKER).write_text("The weights of a model's layers, for coalora_lib.\n")
        for number, (name, weight) in enumerate(weights.items()):
            tensors = {f"{name}.weight": weight.detach().cpu().contiguous()}
            save_file(tensors, partial / f"{number:05d}.safetensors", {"format": "pt"})
    return sorted(folder.glob("*.safetensors"))


def _from_files(
    weights: Mapping[str, Tensor], place: Path, files: list[Path], folder: object = None
) -> Iterator[tuple[str, PretrainedWeight]]:
    found = {name: file for file in files for name in _names(file)}
    for layer, weight in weights.items():
        wanted = f"{layer}.weight"
        # A checkpoint's names lack, or have, the name of the part in front: "bert." or "model.".
        fitting = [n for n in found if f".{wanted}".endswith(f".{n}") or n.endswith(f".{wanted}")]
        for name in fitting:
            held = _mapped(found[name], name)
            if held.dtype == weight.dtype and torch.equal(held, weight.cpu()):
                break
        else:
            what = "another weight" if fitting else "no weight"
            raise ValueError(
                f"{place} has {what} for {layer!r:.100}; allowed: the safetensors files that the "
                "model was read from, in its dtype, or a folder that is new or empty"
            )
        source = found[name].absolute(), name
        yield layer, PretrainedWeight(held, True, weight.device, source, folder)


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as content:
            return list(content.keys())
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {flat(error):.300}") from None


def _mapped(file: Path, name: str) -> Tensor:
    """A tensor that stays in its file; writing into it would not reach the file."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; it held a pre-trained weight of the model, which is lost here"
        )
    try:
        with safe_open(file, "pt") as content:
            return content.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {flat(error):.300}") from None
