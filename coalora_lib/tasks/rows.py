"""Columns of a table in a file or in memory: cells as they are, and the place of each row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from datasets import ClassLabel, Features
from pyarrow.parquet import ParquetFile

from coalora_lib.tasks.lines import COMPRESSED, long_fields, parse_lines, read_lines, split_lines
from coalora_lib.validation import flat

#: What may separate fields: the first with which the header has the columns asked for.
#: Spreadsheets write semicolons where a comma is the decimal point.
DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
#: The files that are read; all but Parquet also compressed, as .csv.gz.
SUFFIXES = (*DELIMITERS, ".jsonl", ".ndjson", ".json", ".parquet")

#: Half of a pair that stands for one character: JSON and Python can hold it, files of text cannot.
SURROGATE = re.compile("[\ud800-\udfff]")


class Rows(NamedTuple):
    """Columns of a table.

    Attributes:
        source: what messages call the table.
        unit: what its rows are counted in: "line" (from 1) or "row" (from 0).
        places: the number of each row.
        columns: the cells by column; what a class label of ``datasets`` is, its name.
        classes: by column, the names of its classes in order, where the table itself has them.
    """

    source: str
    unit: str
    places: Sequence[int]
    columns: dict[Any, list]
    classes: dict[Any, list[str]]

    def refuse(self, rows: Iterable[int], what: Callable[[int], str]) -> None:
        """Raise for rows that cannot be taken, if there are any.

        Raises:
            ValueError: it names the first row, what is wrong with it, and how many there are.
        """
        rows = list(rows)
        if rows:
            more = f" ({len(rows)} such rows in all)" if len(rows) > 1 else ""
            place = f"{self.source}, {self.unit} {self.places[rows[0]]}"
            raise ValueError(f"{place}: {what(rows[0])}{more}")


def read_rows(path: Path, wanted: Sequence[str], quotes: bool | None = None) -> Rows:
    """Read columns of a file; see :func:`coalora_lib.tasks.from_table`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its kind is not known, a column is not there or twice, a row is malformed (file
            and line are named), or there are no rows.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((suffix for suffix in reversed(suffixes) if suffix not in COMPRESSED), "")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: {'this is a folder' if path.is_dir() else 'no such file'}"
        )
    if kind in DELIMITERS:
        with long_fields():
            return _read_delimited(path, wanted, DELIMITERS[kind], quotes)
    if kind in (".jsonl", ".ndjson"):
        return _read_json_lines(path, wanted)
    if kind == ".json":
        return _read_json(path, wanted)
    if kind == ".parquet":
        return _read_parquet(path, wanted)
    raise ValueError(f"{path}: the kind of file is not known; allowed: {', '.join(SUFFIXES)}")


def from_columns(
    names: Iterable[Any],
    column: Callable[[int], Any],
    wanted: Sequence[str],
    source: str,
    features: Mapping[str, Any] | None = None,
) -> Rows:
    """Rows of a table that is kept column by column.

    Args:
        names: of all columns.
        column: the cells of the column at a position.
        wanted: the names of those to take.
        source: what messages call the table.
        features: of ``datasets``, by column.

    Raises:
        ValueError: a column is not there or twice, columns differ in length, or there are no rows.
        TypeError: a column is not a sequence.
    """
    names, features = list(names), features or {}
    columns, classes = {}, {}
    for name in wanted:
        cells = column(position(names, name, source))
        if isinstance(cells, str | bytes) or not isinstance(cells, Iterable):
            raise TypeError(f"{source}: column {name!r} must be a list, not {type(cells).__name__}")
        feature = features.get(name)
        each = getattr(feature, "feature", feature)
        columns[name] = [_named(cell, each) for cell in cells]
        if isinstance(each, ClassLabel):
            classes[name] = list(each.names)
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{source}: the columns differ in length: {lengths}")
    count = lengths[wanted[0]]
    if not count:
        raise ValueError(f"{source}: there are no rows")
    return Rows(source, "row", range(count), columns, classes)


def from_records(
    records: Iterable[tuple[int, Any]], wanted: Sequence[str], source: str, unit: str = "row"
) -> Rows:
    """Rows that are dictionaries, each with its number in units.

    Raises:
        ValueError: a row is not a dictionary or lacks a column, or there are no rows.
    """
    places: list[int] = []
    columns: dict[Any, list] = {name: [] for name in wanted}
    for place, record in records:
        if not isinstance(record, Mapping):
            names = ", ".join(f'"{name}": ...' for name in wanted)
            raise ValueError(f"{source}, {unit} {place}: expected {{{names}}}, got {record!r:.80}")
        for name in wanted:
            if name not in record:
                position(list(record), name, f"{source}, {unit} {place}")
            columns[name].append(record[name])
        places.append(place)
    if not places:
        raise ValueError(f"{source}{', line 1' if unit == 'line' else ''}: there are no rows")
    return Rows(source, unit, places, columns, {})


def position(names: Sequence[Any], wanted: str, source: str) -> int:
    """Where a column stands among all.

    Raises:
        ValueError: it is not there, or twice; those that are there, and the nearest, are named.
    """
    found = [i for i, name in enumerate(names) if name == wanted]
    if len(found) > 1:
        raise ValueError(f"{source}: {len(found)} columns are called {wanted!r:.80}")
    if not found:
        lower = {str(name).strip().lower(): name for name in names}
        near = get_close_matches(str(wanted).strip().lower(), lower, n=1, cutoff=0)
        raise ValueError(
            f"{source}: there is no column {wanted!r}; there are: "
            + (f"{', '.join(map(repr, names)):.400}" or "none")
            + (f"; the nearest is {lower[near[0]]!r:.80}" if near else "")
        )
    return found[0]


def _named(cell: Any, feature: Any) -> Any:
    """A cell with the names of its class labels; -1 stands for a label that is not known."""
    if not isinstance(feature, ClassLabel) or cell is None:
        return cell
    if isinstance(cell, list):
        return [_named(each, feature) for each in cell]
    return None if cell == -1 else feature.int2str(int(cell))


def _read_delimited(
    path: Path, wanted: Sequence[str], delimiters: str, quotes: bool | None
) -> Rows:
    lines, source = list(read_lines(path)), str(path)

    def rows(delimiter: str) -> Iterator[tuple[int, list[str]]]:
        if quotes is False:
            return split_lines(lines, delimiter)
        # Tabs seldom stand in a text, commas often.
        return parse_lines(lines, delimiter, source, check=quotes is None and delimiter == "\t")

    delimiter = delimiters[0]
    for each in delimiters:
        with suppress(ValueError):  # by this delimiter, the header is not even well-formed
            if set(wanted) <= set(next(rows(each), (1, []))[1]):
                delimiter = each
                break
    _, header = next(rows(delimiter), (1, []))
    if not header:
        raise ValueError(f"{source}, line 1: the file is empty")
    chosen = [position(header, name, source) for name in wanted]
    places, kept = [], []
    for line, fields in rows(delimiter):
        if len(fields) != len(header):
            more = quotes is not False and len(fields) > len(header)
            hint = "; a text that holds a separator needs quotes" if more else ""
            raise ValueError(
                f"{source}, line {line}: the header has {len(header)} fields, this row "
                f"{len(fields)}{hint}"
            )
        places.append(line)
        kept.append([fields[i] for i in chosen])
    if len(kept) == 1:
        raise ValueError(f"{source}, line 2: the file has a header and no rows")
    columns = {name: [fields[i] for fields in kept[1:]] for i, name in enumerate(wanted)}
    return Rows(source, "line", places[1:], columns, {})


def _read_json_lines(path: Path, wanted: Sequence[str]) -> Rows:
    numbered = enumerate(read_lines(path), start=1)
    records = ((line, _loads(text, path, line)) for line, text in numbered if text.strip())
    return from_records(records, wanted, str(path), "line")


def _read_json(path: Path, wanted: Sequence[str]) -> Rows:
    """A list of rows, an object of columns, or a row a line."""
    text = "".join(read_lines(path))
    try:
        content = _loads(text, path)
    except ValueError:
        if text.lstrip().startswith("["):
            raise
        return _read_json_lines(path, wanted)
    if isinstance(content, list):
        return from_records(enumerate(content), wanted, str(path))
    if not isinstance(content, dict) or not isinstance(content.get(wanted[0]), list | dict):
        return from_records([(1, content)], wanted, str(path), "line")
    # pandas writes a column as an object, by the names of its rows.
    columns = [list(c.values()) if isinstance(c, dict) else c for c in content.values()]
    return from_columns(content, columns.__getitem__, wanted, str(path))


def _loads(text: str, path: Path, line: int | None = None) -> Any:
    def unique(pairs):
        made = dict(pairs)
        if len(made) < len(pairs):
            raise ValueError("an object has one name twice")
        return made

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        place = line or getattr(error, "lineno", 1)
        raise ValueError(f"{path}, line {place}: not JSON ({error})") from None


def _read_parquet(path: Path, wanted: Sequence[str]) -> Rows:
    def refused(error: Exception, what: str) -> ValueError:
        return ValueError(f"{path}: {what} ({type(error).__name__}: {flat(error):.200})")

    try:
        table = ParquetFile(path).read()
        features = None
        if b"huggingface" in (table.schema.metadata or {}):
            features = Features.from_arrow_schema(table.schema)
    except Exception as error:  # a damaged file is found by pyarrow in ways of any kind
        raise refused(error, "not a Parquet file") from None

    def cells(i: int) -> list:
        try:
            return table.column(i).to_pylist()
        except Exception as error:  # as above, and bytes that are no text
            raise refused(error, f"column {table.column_names[i]!r:.80} is damaged") from None

    return from_columns(table.column_names, cells, wanted, str(path), features)
