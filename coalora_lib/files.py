"""Files and folders written whole or not at all, their checksums, and locks."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

#: Field of a sealed JSON file that holds the checksum of the others.
SEAL = "sha256"


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; the file moves to ``path`` if the block ends without an error.

    ValueError if no file can be called so.
    """
    path = _nameable(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        partial.chmod(_usual_mode(partial))
        _flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(
    path: str | Path, marker: str, others: Collection[str] | None = ()
) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes ``path`` if the block ends well.

    Args:
        path: missing, empty, or a folder of this kind, which is then replaced as a whole.
        marker: a file by which one knows a folder of this kind.
        others: what else one may hold, in it directly; None for anything.

    Raises:
        FileExistsError: ``path`` is a file, or a folder with other things in it; one is named.
        ValueError: no folder can be called so.
    """
    path = replaceable(path, marker, others)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    former = path.with_name(f".{path.name}.{os.getpid()}.old")
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(_usual_mode(file))
                _flush(file)
        if path.exists():
            os.replace(path, former)
        try:
            os.replace(partial, path)
        except OSError:
            if former.exists():
                os.replace(former, path)
            raise
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # what they hold by now stays
            for parent in missing:
                parent.rmdir()


def replaceable(path: str | Path, marker: str, others: Collection[str] | None = ()) -> Path:
    """A folder's absolute path, if :func:`atomic_folder` may write it; with its errors."""
    path = _nameable(path).absolute()
    occupied = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if occupied and not (path / marker).is_file():
        raise FileExistsError(f"{path} exists and has no {marker}, so nothing was changed")
    foreign = set() if others is None or not occupied else {each.name for each in path.iterdir()}
    if foreign := foreign - {marker, *(others or ())}:
        raise FileExistsError(
            f"{path} also holds {min(foreign)}, which this program did not write, "
            "so nothing was changed"
        )
    return path


def _nameable(path: str | Path) -> Path:
    """A path; ValueError if it holds a NUL, or half a surrogate pair."""
    try:
        if b"\0" not in os.fsencode(path):
            return Path(path)
    except UnicodeEncodeError:
        pass
    raise ValueError(f"{str(path)!r:.200} cannot be the name of a file")


def _usual_mode(file: Path) -> int:
    """The mode that a new file gets here; safetensors writes its own for the owner only."""
    probe = file.with_name(f".{file.name}.mode")
    try:
        probe.touch()
        return probe.stat().st_mode & 0o777
    finally:
        probe.unlink(missing_ok=True)


def try_lock(path: str | Path) -> IO[str] | None:
    """Lock a file, made if it is missing; it stays locked until the returned file is closed.

    None if it is locked already; it then holds the number of the process that does. The lock is the
    operating system's (``flock``): it ends with its process, however that ends. On a file system
    without locks there is a warning, and none.
    """
    file = Path(path).open("a+")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            file.close()
            raise
        warnings.warn(
            f"{Path(path).parent} is on a file system without locks ({error.strerror}): another "
            "process that writes into it would not be noticed",
            stacklevel=2,
        )
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def sha256_of(path: str | Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(folder: Path, recorded: Mapping[str, str | None]) -> None:
    """Refuse a folder whose files are not those of the recorded checksums, by name.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one was changed.
    """
    for name, expected in recorded.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file")
        if sha256_of(folder / name) != expected:
            raise ValueError(f"{folder / name} was changed: its sha256 is not the recorded one")


def _flush(path: Path) -> None:
    """Have the content on disk before the name points to it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def seal(content: dict[str, Any]) -> str:
    """Content as JSON text that carries its own checksum, for :func:`unseal`."""
    return json.dumps(content | {SEAL: _digest(content)}, indent=1) + "\n"


def unseal(text: str) -> dict[str, Any]:
    """The content of a text that :func:`seal` made; ValueError if it was altered since."""
    try:
        content = json.loads(text)
        whole = isinstance(content, dict) and content.pop(SEAL, None) == _digest(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not whole:
        raise ValueError(
            "it was changed or is not of this kind: its sha256 does not fit its content"
        )
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
