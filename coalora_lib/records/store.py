"""Records in folders: one JSON file each, written whole or not at all, checked when read."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from coalora_lib.files import atomic_file
from coalora_lib.records.identity import check_same_ground
from coalora_lib.records.schema import Record, describe

#: The longest file that is read, in bytes: some hundred times the longest record of the book.
MOST_BYTES = 2**25


def write_record(record: Record, folder: str | Path) -> Path:
    """Write a record into a folder, under its :attr:`~Record.file_name`.

    Raises:
        ValueError: a field is not what a record may hold; a copy with changed fields is checked
            here.
    """
    path = Path(folder) / Record.model_validate(record.model_dump()).file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(record.model_dump_json(indent=2) + "\n")
    return path


def read_record(path: str | Path) -> Record:
    """Read a record.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a record; the file and the field at fault are named.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path} is not a record: {size} bytes, at most {MOST_BYTES}")
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not a record: {describe(error)}") from None


def read_records(folder: str | Path) -> list[Record]:
    """All records of a folder, by file name, made on the same ground.

    Raises:
        ValueError: there are none, one is no record, or two may not stand in one table: see
            :func:`~coalora_lib.records.identity.check_same_ground`.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise ValueError(f"{folder} holds no records")
    records = [read_record(path) for path in paths]
    try:
        check_same_ground(records)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return records
