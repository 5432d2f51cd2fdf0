"""GGUF files, written one tensor at a time, and their sizes known before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coalora_lib.spaces import GgufWeight
from coalora_lib.spaces.gguf import library, stored_bytes

if TYPE_CHECKING:
    from gguf import GGUFWriter

    #: Writes what a file says beside its tensors.
    Fill = Callable[[GGUFWriter], None]


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: how it is stored, and what makes it when its turn comes."""

    name: str  #: as llama.cpp calls it
    shape: tuple[int, ...]
    kind: str  #: a key of :data:`coalora_lib.spaces.gguf.BLOCKS`
    make: Callable[[], GgufWeight]

    @property
    def nbytes(self) -> int:
        """Bytes in the file, padding included."""
        return padded(stored_bytes(self.kind, self.shape))


def padded(nbytes: int) -> int:
    """Bytes that a tensor takes in a file: the next one begins at a multiple of 32."""
    gguf = library("gguf")
    return gguf.GGUFWriter.ggml_pad(nbytes, gguf.GGUF_DEFAULT_ALIGNMENT)


def write_file(path: Path, architecture: str, fill: Fill, entries: Sequence[Entry]) -> None:
    """Write a file; of the tensors only one is in memory at a time.

    ValueError if one cannot be stored as its type; it is named.
    """
    writer = _begun(path, architecture, fill, entries)
    try:
        for entry in entries:
            try:
                made = entry.make()
            except ValueError as error:
                raise ValueError(f"{entry.name}: {error}") from None
            writer.write_tensor_data(made.data.numpy())
    finally:
        writer.close()


def file_size(architecture: str, fill: Fill, entries: Sequence[Entry]) -> int:
    """Bytes of the file that :func:`write_file` would write."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        _begun(path, architecture, fill, entries).close()
        header = path.stat().st_size
    return padded(header) + sum(entry.nbytes for entry in entries)


def _begun(path: Path, architecture: str, fill: Fill, entries: Sequence[Entry]) -> GGUFWriter:
    """A file with everything before the tensors."""
    gguf = library("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    for entry in entries:
        kind = gguf.GGMLQuantizationType[entry.kind]
        nbytes = stored_bytes(entry.kind, entry.shape)
        writer.add_tensor_info(entry.name, entry.shape, None, nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer
