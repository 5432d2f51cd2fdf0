"""Records in folders: one JSON file each, written whole or not at all, checked when read."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from coalora_lib.files import atomic_file
from coalora_lib.records.schema import Record, Strict
from coalora_lib.validation import describe

#: The longest file that is read, in bytes: some hundred times the longest record of the book.
MOST_BYTES = 2**25
#: What records of one table agree in; jobs may differ, and where a record came from.
SAME = ("protocol", "dataset", "data_checksum", "model", "model_checksum", "profile", "parameters")


def write_json(content: Strict, path: Path, indent: int = 2) -> Path:
    """Write it whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(_as_json(content, indent))
    return path


def _as_json(content: Strict, indent: int = 2) -> str:
    return content.model_dump_json(indent=indent) + "\n"


def _valid(record: Record) -> Record:
    """The record; a ValueError if a field, as of a copy, is not what it may hold."""
    return Record.model_validate(record.model_dump())


def write_record(record: Record, folder: str | Path) -> Path:
    """Write a record into a folder, under its :attr:`~Record.file_name`.

    Raises:
        ValueError: a field is not valid in a record, as in a copy with changed fields.
    """
    return write_json(record, Path(folder) / _valid(record).file_name)


def record_bytes(record: Record) -> bytes:
    """What :func:`write_record` writes; errors are the same."""
    return _as_json(_valid(record)).encode()


def record_from(content: bytes, name: str = "it") -> Record:
    """A record from a file's content; a ValueError if it is none, with the name and the field."""
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"{name} is not a record: {describe(error)}") from None


def read_record(path: str | Path) -> Record:
    """Read a record; a ValueError if it is none, which names the file and the field at fault."""
    path = Path(path)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path} is not a record: {size} bytes, at most {MOST_BYTES}")
    return record_from(path.read_bytes(), str(path))


def read_records(folder: str | Path) -> list[Record]:
    """All records of a folder, by file name, which may stand in one table.

    Raises:
        ValueError: there are none, one is not a record, or two differ in protocol, data, model,
            profile or parameters; the first two such records are named.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise ValueError(f"{folder} holds no records")
    records = [read_record(path) for path in paths]
    first = records[0]
    for record in records:
        for name in SAME:
            if getattr(record, name) != getattr(first, name):
                what = name.removesuffix("_checksum").replace("dataset", "data")
                raise ValueError(
                    f"{folder}: records differ in {what}: {first.file_name} and {record.file_name}"
                )
    return records
