"""STS Benchmark's files: tab-separated, without a header; a quote is part of a text."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from coalora_lib.tasks.lines import read_lines, split_lines

#: Fields of a row; some rows have more behind them, which are left out.
FIELDS = ("genre", "file", "year", "id", "score", "sentence1", "sentence2")
#: Scores are from 0, nothing in common, to this, the same.
MOST = 5.0


def read_stsb(path: Path) -> Dataset:
    """Pairs of sentences and how alike people find them: columns sentence, second, score.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is malformed, a sentence blank or a score out of range (file and line are
            named), or there are no rows.
    """
    rows = [
        _row(fields, f"{path}, line {line}")
        for line, fields in split_lines(list(read_lines(path)), "\t")
    ]
    if not rows:
        raise ValueError(f"{path}, line 1: the file has no rows")
    names = ("sentence", "second", "score")
    return Dataset.from_dict(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def _row(fields: list[str], place: str) -> tuple[str, str, float]:
    """Both sentences and their score."""
    score, *texts = (field.strip() for field in fields[4 : len(FIELDS)])
    if len(texts) != 2 or not all(texts):
        raise ValueError(
            f"{place}: expected {'<TAB>'.join(FIELDS)}, got {'<TAB>'.join(fields)!r:.200}"
        )
    try:
        value = float(score)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MOST:
        raise ValueError(f"{place}: score {score!r:.80} is not a number from 0 to {MOST:g}")
    return texts[0], texts[1], value
