"""Own texts: what is written is read back, and what cannot be taken is named with its place."""

import csv
import gzip
import io
import json
import math

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, List, Value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coalora_lib.tasks import from_table

FRAME = pd.DataFrame({"text": ["good", "bad", "good again"], "label": ["pos", "neg", "pos"]})
NAMED = Dataset.from_dict(
    {"text": ["good", "bad", "good again"], "label": [1, 0, 1]},
    features=datasets.Features(text=Value("string"), label=ClassLabel(names=["neg", "pos"])),
)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def labels_of(values, **options):
    """The labels and their feature, of values in memory."""
    made = from_table(([f"text {i}" for i in range(len(values))], values), **options)
    return made["label"][:], made.features["label"]


TABLES = {
    "csv": lambda folder: FRAME.to_csv(folder / "t.csv", index=False) or folder / "t.csv",
    "csv-index": lambda folder: FRAME.to_csv(folder / "t.csv") or folder / "t.csv",
    "csv-gz": lambda folder: FRAME.to_csv(folder / "t.csv.gz") or folder / "t.csv.gz",
    "tsv": lambda folder: FRAME.to_csv(folder / "t.TSV", sep="\t") or folder / "t.TSV",
    "semicolons": lambda folder: FRAME.to_csv(folder / "t.csv", sep=";") or folder / "t.csv",
    "jsonl": lambda folder: (
        FRAME.to_json(folder / "t.jsonl", orient="records", lines=True) or folder / "t.jsonl"
    ),
    "json-lines": lambda folder: (
        FRAME.to_json(folder / "t.json", orient="records", lines=True) or folder / "t.json"
    ),
    "json-list": lambda folder: (
        FRAME.to_json(folder / "t.json", orient="records", indent=1) or folder / "t.json"
    ),
    "json-columns": lambda folder: FRAME.to_json(folder / "t.json") or folder / "t.json",
    "parquet": lambda folder: FRAME.to_parquet(folder / "t.parquet") or folder / "t.parquet",
    "parquet-category": lambda folder: (
        FRAME.astype("category").to_parquet(folder / "t.parquet") or folder / "t.parquet"
    ),
    "parquet-named": lambda folder: NAMED.to_parquet(folder / "t.parquet") and folder / "t.parquet",
    "path-as-text": lambda folder: str(TABLES["csv"](folder)),
    "frame": lambda folder: FRAME,
    "frame-index": lambda folder: FRAME.set_index(np.array([7, 7, 2])),
    "frame-category": lambda folder: FRAME.astype({"label": "category"}),
    "records": lambda folder: FRAME.to_dict("records"),
    "columns": lambda folder: FRAME.to_dict("list"),
    "series": lambda folder: dict(FRAME),
    "pair": lambda folder: (list(FRAME["text"]), list(FRAME["label"])),
    "pair-of-arrays": lambda folder: (FRAME["text"].to_numpy(), FRAME["label"].to_numpy()),
    "dataset": lambda folder: Dataset.from_pandas(FRAME),
    "dataset-named": lambda folder: NAMED,
    "dataset-as-torch": lambda folder: NAMED.with_format("torch"),
    "dataset-selection": lambda folder: datasets.concatenate_datasets([NAMED, NAMED]).select(
        [0, 1, 5]
    ),
}


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_one_table_in_every_form(make, tmp_path):
    made = from_table(make(tmp_path), label="label")
    assert made.column_names == ["sentence", "label"]
    assert made["sentence"][:] == ["good", "bad", "good again"]
    assert made["label"][:] == [1, 0, 1]
    assert made.features["label"] == ClassLabel(names=["neg", "pos"])


def test_columns_by_name_and_pairs_and_no_label():
    frame = pd.DataFrame({"question": ["a", "b"], "answer": ["c", "d"], "ok": [True, False], 3: 4})
    made = from_table(frame, text="question", second="answer", label="ok")
    assert made[0] == {"sentence": "a", "second": "c", "label": 1}
    assert made.features["label"].names == ["False", "True"]
    assert from_table(frame, text="answer").column_names == ["sentence"]
    assert from_table(["a", "b"])["sentence"][:] == ["a", "b"]
    with pytest.raises(ValueError, match=r"the table: there is no column 'texts'; there are: 'qu"):
        from_table(frame, text="texts")


def test_home_and_relative_paths(tmp_path, monkeypatch):
    write(tmp_path / "own.csv", "text\nx\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert from_table("~/own.csv")["sentence"][:] == ["x"]
    monkeypatch.chdir(tmp_path)
    assert from_table("own.csv")["sentence"][:] == ["x"]


@pytest.mark.parametrize(
    ("values", "feature", "expected"),
    [
        ([10, 9, 9], ClassLabel(names=["9", "10"]), [1, 0, 0]),
        (["10", " 9", "9 "], ClassLabel(names=["9", "10"]), [1, 0, 0]),
        ([-1, 1], ClassLabel(names=["-1", "1"]), [0, 1]),
        ([4.0, 3.0], ClassLabel(names=["3", "4"]), [1, 0]),
        (["4.0", "3"], ClassLabel(names=["3", "4"]), [1, 0]),
        (["007", "010"], ClassLabel(names=["007", "010"]), [0, 1]),
        (["b", "a", "10", "9"], ClassLabel(names=["10", "9", "a", "b"]), [3, 2, 0, 1]),
        (["NA", "none", "x"], ClassLabel(names=["NA", "none", "x"]), [0, 1, 2]),
        ([True, False], ClassLabel(names=["False", "True"]), [1, 0]),
        ([2**60, 2**60 + 1], ClassLabel(names=[str(2**60), str(2**60 + 1)]), [0, 1]),
        ([0.5, 3], Value("float32"), [0.5, 3.0]),
        (["5e-1", "-3."], Value("float32"), [0.5, -3.0]),
        (np.float32([0.5, 3]), Value("float32"), [0.5, 3.0]),
        (torch.tensor([1, 0]), ClassLabel(names=["0", "1"]), [1, 0]),
        ([["b", "a"], [], ["b"]], List(ClassLabel(names=["a", "b"])), [[1, 0], [], [1]]),
        ([[7], [3, 7]], List(ClassLabel(names=["3", "7"])), [[1], [0, 1]]),
        ([[0], [1]], List(ClassLabel(names=["0", "1"])), [[0], [1]]),
        ([[0, 1, 1], [0, 0, 0]], List(ClassLabel(names=["0", "1", "2"])), [[1, 2], []]),
        (np.eye(2), List(ClassLabel(names=["0", "1"])), [[0], [1]]),
        ([(True, False), (True, True)], List(ClassLabel(names=["0", "1"])), [[0], [0, 1]]),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_the_labels_are_stands_in_the_features(values, feature, expected):
    assert labels_of(values) == (expected, feature)


@pytest.mark.parametrize(
    ("values", "classes", "expected"),
    [
        (["b", "a"], ["b", "a", "c"], [0, 1]),
        ([1.0, 0], [2, 1, 0], [1, 2]),
        (["1.0"], ["1.0", "2.0"], [0]),
        (["b"], ClassLabel(names=["a", "b"]), [1]),
        ([["b"], ["b", "a"]], ["a", "b"], [[1], [1, 0]]),
        ([[0, 1], [1, 1]], ["a", "b"], [[1], [0, 1]]),
        ([[0, 1], [1, 1]], range(3), [[0, 1], [1, 1]]),
        ([["b"]], List(ClassLabel(names=["a", "b"])), [[1]]),
        ([1, 5], Value("float32"), [1.0, 5.0]),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_test_set_is_read_as_the_training_set_was(values, classes, expected):
    assert labels_of(values, classes=classes)[0] == expected


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([1, None, np.nan], None, r"the table, row 1: label is empty \(2 such rows in all\)"),
        (["a", " "], None, "row 1: label is empty"),
        (pd.array([1, None], "Int64"), None, "row 1: label is empty"),
        ([["a"], [None]], None, "row 1: label is empty"),
        ([1, 2, "n/a"], None, "row 2: label is 'n/a', no number that can be read"),
        ([0.5, math.inf], None, "row 1: label is inf, no number"),
        (["4,5", "3,5"], None, "row 0: label is '4,5', no number"),
        (["1", "01"], None, "label has '01' and '1', one number written in two ways"),
        (["x", ["x"]], None, "row 0: label is 'x', not a list of classes"),
        ([["x"], [["x"]]], None, "row 1: label is .* not a list of classes"),
        ([{"a": 1}], None, "row 0: label is {'a': 1}, not text or a number"),
        (["\ud800"], None, "row 0: label is"),
        ([[], []], None, "label has no class in any row"),
        ([[0.5, 0.5]], None, "lists with numbers that are not whole"),
        (["a", "x"], ["a", "b"], "row 1: label is 'x', not one of a, b"),
        (["x"], range(30), r"not one of 0, 1, .*19, \.\.\.$"),
        (["x"], Value("float32"), "row 0: label is 'x', not a finite float32 number"),
        ([1e300], Value("float32"), "row 0: label is 1e[+]300, not a finite"),
        ([[1]], Value("float32"), r"row 0: label is \[1\], not text or a number"),
        (["x"], List(ClassLabel(names=["x"])), "row 0: label is 'x', not a list"),
        (["x"], ["x", "x"], "must be different names"),
        ([1], [], "must be different names, at least one"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_labels_that_cannot_be_taken_are_named(values, classes, message):
    with pytest.raises(ValueError, match=message):
        labels_of(values, classes=classes)


@pytest.mark.parametrize(
    ("name", "content", "sentences", "labels"),
    [
        ("a.csv", b"\xef\xbb\xbftext,label\r\nx,1\r\n\r\n,\r\n  \r\ny,0\r\n", ["x", "y"], [1, 0]),
        ("a.csv", b"text,label\rx,1\ry,0\r", ["x", "y"], [1, 0]),
        ("a.csv", b'text,label\r"x\ny",1\rz,0', ["x\ny", "z"], [1, 0]),
        ("a.csv", "text,label\nü,1\n".encode("utf-16"), ["ü"], [0]),
        ("a.csv", "text,label\nü,1\n".encode("utf-32"), ["ü"], [0]),
        ("a.csv", 'text,label\n"a, ""b""\r\n\u2028c",1\n', ['a, "b"\r\n\u2028c'], [0]),
        ("a.csv", 'text,label\n5" x,1\n', ['5" x'], [0]),
        ("a.csv", "text,label\nNA,1\n007,1\n1.0,1\n", ["NA", "007", "1.0"], [0, 0, 0]),
        ("a.csv", b"text,label\na\x00b,1\n", ["a\x00b"], [0]),
        ("a.csv", '"text";"label"\n"x, y";1\n', ["x, y"], [0]),
        ("a.csv", "text,label\n" + "x" * 200_000 + ",1\n", ["x" * 200_000], [0]),
        ("a.csv", "label,other,text,other\n1,,x,\n", ["x"], [0]),
        ("a.tsv", 'text\tlabel\n5" x\t1\n"a ""b"" c"\t1\n', ['5" x', 'a "b" c'], [0, 0]),
        ("a.tsv", 'text\tlabel\n"a\nb"\t1\n', ["a\nb"], [0]),
        ("a.jsonl", '\ufeff{"text":"7","label":1}\r\n\n{"text":"☕","label":1}', [*"7☕"], [0, 0]),
        ("a.jsonl", '{"text":"a","label":1}\r{"text":"b","label":0}\r', ["a", "b"], [1, 0]),
        ("a.json", '{"text": "a", "label": 1}', ["a"], [0]),
        ("a.csv.gz", gzip.compress(b"text,label\nx,1\n", mtime=0), ["x"], [0]),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_wild_files_are_taken(name, content, sentences, labels, tmp_path):
    made = from_table(write(tmp_path / name, content), label="label")
    assert (made["sentence"][:], made["label"][:]) == (sentences, labels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv, line 1: the file is empty"),
        ("a.csv", "\n \n", r"a\.csv, line 1: the file is empty"),
        ("a.csv", "text,label\n", "line 2: the file has a header and no rows"),
        ("a.csv", "Text ,label\nx,1\n", "there are: 'Text ', 'label'; the nearest is 'Text '"),
        ("a.csv", "text,label,text\nx,1,y\n", "2 columns are called 'text'"),
        ("a.csv", "text,label\nx,1\ny\n", "line 3: the header has 2 fields, this row 1$"),
        ("a.csv", "text,label\nx, y,1\n", "this row 3; a text that holds a separator needs quotes"),
        ("a.csv", 'text,label\n"x\n",1\n\n"x" y,1\n', "line 5: stray quotes"),
        ("a.csv", 'text,label\nx,1\n"y,1\nz,1\n', "line 3: stray quotes"),
        ("a.csv", "text,label\nx\ry,1\n", "line 2: a carriage return outside of quotes"),
        ("a.csv", "text,label\nx,1\ny,\nz,\n", r"line 3: label is empty \(2 such rows in all\)"),
        ("a.csv", 'text,label\n"x\ny",1\n"",0\n', "line 4: text is empty"),
        ("a.csv", "text\nx\n  \n", "line 3: text is empty"),
        ("a.csv", b"text,label\n\nx,1\ncaf\xe9,1\n", "line 4: not UTF-8"),
        ("a.csv", "text,label\nx,1\n".encode("utf-16")[:-1], "line 2: not UTF-16"),
        ("a.csv.gz", gzip.compress(b"text,label\nx,1\n", mtime=0)[:-9], "cannot be decompressed"),
        ("a.csv.gz", b"text,label\nx,1\n", "cannot be decompressed"),
        ("a.csv", "x" * 9000 + ",label\ny,1\n", "there is no column 'text'; .*: 'x{399}; the"),
        ("a.csv.bz2", b"text,label\nx,1\n", "cannot be decompressed"),
        ("a.csv.xz", b"text,label\nx,1\n", "cannot be decompressed"),
        ("a.tsv", 'text\tlabel\n"a\t1\nb"\t0\n', "line 2: this is one row in quotes, or 2 rows"),
        ("a.jsonl", "", r"a\.jsonl, line 1: there are no rows"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2: there is no col"),
        ("a.jsonl", '{"text": "a", "label": 1}\n\n["b", 1]\n', "line 3: expected {"),
        ("a.jsonl", '{"text": 7, "label": 1}\n', "line 1: text is 7, not text but int"),
        ("a.jsonl", '{"text": null, "label": 1}\n', "line 1: text is empty"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', "line 1: label is empty"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}\n', "line 1: text is not Unicode"),
        ("a.jsonl", '{"text": "a", "text": "b", "label": 1}\n', "line 1: not JSON .*twice"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.json", '[\n{"text": "a", "label": 1}\n{"text"', "line 3: not JSON"),
        ("a.json", '{"txt": ["a"], "label": [1]}', "there is no column 'text'.* nearest is 'txt'"),
        ("a.json", '{"text": ["a"], "label": [1, 2]}', "the columns differ in length"),
        ("a.json", "[]", r"a\.json: there are no rows"),
        ("a.parquet", "PAR1", "not a Parquet file"),
        ("a.xlsx", "", r"the kind of file is not known; allowed: \.csv, \.tsv"),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_what_cannot_be_taken_is_named_with_file_and_line(name, content, message, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        from_table(
            path, label="label" if name != "a.csv" or b"label" in path.read_bytes() else None
        )
    assert name in str(caught.value)


def test_bytes_in_parquet_that_are_no_text_are_named(tmp_path):
    FRAME.to_parquet(tmp_path / "a.parquet", compression=None)
    content = (tmp_path / "a.parquet").read_bytes()
    text = FRAME["text"][0].encode()
    assert text in content
    (tmp_path / "a.parquet").write_bytes(content.replace(text, b"\xa9" + text[1:]))
    with pytest.raises(ValueError, match=r"a\.parquet: column 'text' is damaged \(UnicodeDecode"):
        from_table(tmp_path / "a.parquet")


def test_quotes_may_be_characters(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"a\t1\nb"\t0\n')
    assert from_table(path, label="label", quotes=False)["sentence"][:] == ['"a', 'b"']
    assert from_table(path, label="label", quotes=True)["sentence"][:] == ["a\t1\nb"]


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        ("no.csv", {}, FileNotFoundError, r"no\.csv: no such file"),
        (".", {}, FileNotFoundError, "this is a folder"),
        (7, {}, TypeError, "a table of type int is not known; allowed: a path, a pandas"),
        ([("a", 1)], {}, TypeError, "a table of type list"),
        ({"text": "a"}, {}, TypeError, "column 'text' must be a list, not str"),
        ([], {}, ValueError, "the table: there are no rows"),
        (FRAME[:0], {}, ValueError, "there are no rows"),
        ((["a"], [1, 2]), {}, ValueError, "the columns differ in length: {'text': 1, 'label': 2}"),
        ([{"text": "a"}, {"txt": "b"}], {}, ValueError, "row 1: there is no column 'text'"),
        (FRAME.assign(text=[1, 2, 3]), {}, ValueError, "row 0: text is 1, not text but int"),
        (FRAME[["text", "text"]], {}, ValueError, "2 columns are called 'text'"),
        (FRAME.replace("bad", None), {}, ValueError, "row 1: text is empty"),
        (datasets.DatasetDict(train=NAMED), {}, ValueError, "there are: 'train'"),
        (FRAME, {"classes": ["a"]}, ValueError, "classes= is given, and no column in label="),
        (FRAME, {"label": "label", "classes": "neg"}, TypeError, "classes='neg' must be names"),
        (FRAME, {"label": "label", "classes": Value("int8")}, TypeError, "must be names in order"),
        (NAMED.map(lambda row: {"label": -1}), {"label": "label"}, ValueError, "row 0: label is e"),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_tables_that_cannot_be_taken(table, options, error, message):
    with pytest.raises(error, match=message):
        from_table(table, **options)


def csv_text(texts, labels, **options):
    file = io.StringIO()
    csv.writer(file, **options).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return file.getvalue()


def frame_text(texts, labels, **options):
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object), "label": labels})
    return frame.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, **options)


def json_text(texts, labels, **options):
    rows = zip(texts, labels, strict=True)
    return "\n".join(json.dumps({"text": t, "label": n}, **options) for t, n in rows)


WRITERS = {
    "csv": ("a.csv", csv_text, {}),
    "csv-all-quoted": ("a.csv", csv_text, {"quoting": csv.QUOTE_ALL, "lineterminator": "\n"}),
    "tsv": ("a.tsv", csv_text, {"dialect": "excel-tab"}),
    "pandas": ("a.csv", frame_text, {}),
    "pandas-semicolon": ("a.csv", frame_text, {"sep": ";"}),
    "json": ("a.jsonl", json_text, {}),
    "json-unicode": ("a.jsonl", json_text, {"ensure_ascii": False}),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
SPECIAL = st.text(st.sampled_from(' a,;\t"\n\r\x00\ufeff\u2028\x1c\\'), min_size=1).filter(
    str.strip
)


@pytest.mark.parametrize(("name", "written", "options"), WRITERS.values(), ids=WRITERS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(rows=[("NA", 0), ("007", 1), ('"', 1), ('a "b"\r\n,;\tc', 0)])
@given(rows=st.lists(st.tuples(TEXT | SPECIAL, st.integers(0, 3)), min_size=1, max_size=6))
def test_what_is_written_is_read_back(name, written, options, rows, tmp_path):
    texts, labels = map(list, zip(*rows, strict=True))
    path = write(tmp_path / name, written(texts, labels, **options))
    made = from_table(path, label="label", classes=range(4), quotes=True)
    assert made["sentence"][:] == texts
    assert made["label"][:] == labels
