"""Lines of a text file and fields of a line, each with the number that an editor shows."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from coalora_lib.validation import flat

COMPRESSED: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
#: Byte-order marks; UTF-32's before UTF-16's, which is the beginning of it.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
#: Characters that a field may have: csv's own limit is 131,072, and it takes 31 bits.
LONGEST_FIELD = 2**31 - 1


def read_lines(path: Path) -> Iterator[str]:
    r"""The lines of a file, compressed or not, with their ends.

    A line ends with \n or \r\n; with any of \n, \r\n and \r if the first one ends with \r.

    Raises:
        FileNotFoundError: there is no such file, or it is a folder.
        ValueError: it is not UTF-8 (or, with a byte-order mark, UTF-16 or UTF-32), the message
            names file and line; or a compressed file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: {'this is a folder' if path.is_dir() else 'no such file'}"
        )
    try:
        with _open(path) as raw:
            start = raw.read(4)
        encoding = next((MARKS[mark] for mark in MARKS if start.startswith(mark)), "utf-8")
        newline = ""
        with _open(path) as raw:
            if not io.TextIOWrapper(raw, encoding, newline="").readline().endswith("\r"):
                newline = "\n"
        with _open(path) as raw:
            yield from io.TextIOWrapper(raw, encoding, newline=newline)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        line = _undecodable(path, encoding)
        raise ValueError(f"{path}, line {line}: not {name} ({error.reason})") from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the disk's, not gzip's or bz2's
            raise
        raise ValueError(f"{path}: cannot be decompressed ({error})") from None


def split_lines(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line that is not blank; a quote is a character."""
    header = None
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip("\r\n").split(delimiter)
        if not _blank(fields, header):
            header = header or fields
            yield number, fields


def parse_lines(
    lines: Sequence[str], delimiter: str, source: str, check: bool
) -> Iterator[tuple[int, list[str]]]:
    """The first line and the fields of each row that is not blank; quotes are as in RFC 4180.

    Args:
        lines: with their ends.
        delimiter: between fields.
        source: what messages call the file.
        check: refuse a row of several lines where each of these has the fields of the first row:
            they may be rows themselves, with stray quotes in their texts.

    Raises:
        ValueError: quotes are not in pairs, or ``check`` fails; file and line are named.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number, header = 1, None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            lone = "new-line character" in str(error)
            what = (
                "a carriage return outside of quotes"
                if lone
                else f"stray quotes ({flat(error):.300})"
            )
            raise ValueError(
                f"{source}, line {number}: {what}; quotes=False takes both as characters"
            ) from None
        if fields is None:
            return
        if not _blank(fields, header):
            header = header or fields
            inside = lines[number - 1 : reader.line_num]
            if check and len(inside) > 1 and _alike(inside, delimiter, len(header)):
                raise ValueError(
                    f"{source}, line {number}: this is one row in quotes, or {len(inside)} rows "
                    "with quotes in their texts; quotes=True or quotes=False says which"
                )
            yield number, fields
        number = reader.line_num + 1


def _blank(fields: list[str], header: list[str] | None) -> bool:
    """Whether nothing is in a line; under a header of one field, blanks may be a text."""
    single = header is not None and len(header) == 1
    return not any(fields if single else map(str.strip, fields))


def _alike(lines: Sequence[str], delimiter: str, fields: int) -> bool:
    return all(line.count(delimiter) == fields - 1 for line in lines)


@contextmanager
def long_fields() -> Iterator[None]:
    """Let csv's fields be of any length that it can take."""
    limit = csv.field_size_limit(LONGEST_FIELD)  # of the whole process
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _open(path: Path):
    opener = COMPRESSED.get(path.suffix.lower(), open)
    return opener(path, "rb")


def _undecodable(path: Path, encoding: str) -> int:
    """The line of a file's first bytes that are not text."""
    with _open(path) as raw:
        content = raw.read()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding, errors="ignore")
        return len(re.findall("\r\n?|\n", before)) + 1
    return 1
