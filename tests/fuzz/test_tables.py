"""Tables of texts, and GLUE's folders."""

import bz2
import gzip
import lzma

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coalora_lib.tasks import from_table
from coalora_lib.tasks.glue import LAYOUTS, read_glue
from tests.fuzz.documents import JUNK, broken_json, changed, damaged
from tests.fuzz.judge import inputs, judge

ROWS = [
    {"text": "a fine, \"warm\" film", "label": "good"},
    {"text": "dull", "label": "bad"},
    {"text": "two\nlines of it", "label": "good"},
    {"text": "été", "label": "bad"},
]  # fmt: skip
FRAME = pd.DataFrame(ROWS)
COMPRESSORS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
#: How texts are encoded; the last two are not what a file says of itself.
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le"]
#: What may stand in the columns of another table.
LABELS = st.sampled_from(["label", "text", "", "labels", "Text"]) | st.none()


def delimited(separator, encoding, ends):
    text = FRAME.to_csv(index=False, sep=separator, lineterminator=ends)
    return text.encode(encoding, errors="replace")


DELIMITED = st.builds(
    delimited,
    st.sampled_from(",;\t"),
    st.sampled_from(ENCODINGS),
    st.sampled_from(["\n", "\r\n", "\r"]),
).flatmap(damaged)


@inputs(120)
@given(DELIMITED, st.sampled_from(["csv", "tsv"]), LABELS, st.sampled_from([None, True, False]))
def test_delimited(fresh, content, kind, label, quotes):
    path = fresh() / f"table.{kind}"
    path.write_bytes(content)
    judge("tables", lambda: from_table(path, label=label, quotes=quotes), [path], path.parent)


@inputs(30)
@given(
    DELIMITED,
    st.sampled_from(sorted(COMPRESSORS)),
    st.sampled_from([*COMPRESSORS, ".zip", ".csv", ".jsonl"]),
    st.booleans(),
    st.data(),
)
def test_compressed(fresh, content, how, named, broken, data):
    content = COMPRESSORS[how](content)
    path = fresh() / f"table.csv{named}"
    path.write_bytes(data.draw(damaged(content)) if broken else content)
    judge("tables", lambda: from_table(path, label="label"), [path], path.parent)


JSON_LINES = st.lists(broken_json(ROWS[0]), min_size=1, max_size=3).map(b"\n".join)


@inputs(70)
@given(
    JSON_LINES | broken_json(ROWS) | broken_json(FRAME.to_dict("list")),
    st.sampled_from(["jsonl", "json"]),
    LABELS,
)
def test_json(fresh, content, kind, label):
    path = fresh() / f"table.{kind}"
    path.write_bytes(content)
    judge("tables", lambda: from_table(path, label=label), [path], path.parent)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    path = tmp_path_factory.mktemp("parquet") / "table.parquet"
    FRAME.to_parquet(path)
    return path.read_bytes()


@inputs(30)
@given(data=st.data())
def test_parquet(data, fresh, parquet):
    path = fresh() / "table.parquet"
    path.write_bytes(data.draw(damaged(parquet)))
    judge("tables", lambda: from_table(path, label="label"), [path], path.parent)


@inputs(50)
@given(
    changed(ROWS) | changed(FRAME.to_dict("list")) | JUNK,
    st.sampled_from(["label", None]),
    st.none() | JUNK | st.just(["bad", "good"]),
)
def test_in_memory(table, label, classes):
    if not isinstance(table, str):  # a path
        judge("tables", lambda: from_table(table, label=label, classes=classes))


def glue(name):
    """A file of a task's as it should be."""
    layout = LAYOUTS[name]
    header = ["index", *layout.texts, layout.label]
    lines = [header]
    for number, label in enumerate(layout.classes * 2):
        lines.append([str(number), *("some text" for _ in layout.texts), label])
    return "\n".join("\t".join(line) for line in lines).encode() + b"\n"


@inputs(50)
@given(st.data(), st.sampled_from(sorted(LAYOUTS)))
def test_glue(fresh, data, name):
    path = fresh() / "train.tsv"
    path.write_bytes(data.draw(damaged(glue(name))))
    judge("tables", lambda: read_glue(path, LAYOUTS[name]), [path], path.parent)
