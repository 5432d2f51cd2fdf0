"""STS-B's files, and texts without labels of which some are held out."""

import pytest
from datasets import Dataset

from coalora_lib.tasks import TASKS, kinds_of, load_task, similarity_pairs
from coalora_lib.tasks.data import TEXTS, apart

ROWS = [
    'main\tMSRvid\t2012\t1\t5.000\tA "plane" takes off.\tAn air plane takes off.',
    "news\tx\t2013\t2\t0\tOne\tTwo\tmore\tfields",
]
LONG = "one two three four five six seven eight {}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COALORA_DATA_DIR", str(tmp_path))
    (tmp_path / "stsb").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "stsb" / f"sts-{name}.csv").write_text("\n".join(ROWS) + "\n")
    return tmp_path / "stsb"


def test_pairs_are_read_with_their_scores(folder):
    assert [tuple(row.values()) for row in similarity_pairs()] == [
        ('A "plane" takes off.', "An air plane takes off.", 5),
        ("One", "Two", 0),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("g\tf\ty\t3\t2.5\tonly one", r"line 3: expected genre<TAB>file<TAB>year<TAB>id<TAB>score"),
        ("g\tf\ty\t3\t2.5\tone\t ", r"line 3: expected genre<TAB>"),
        ("g\tf\ty\t3\tfive\tone\ttwo", r"line 3: score 'five' is not a number from 0 to 5"),
        ("g\tf\ty\t3\t5.1\tone\ttwo", r"line 3: score '5\.1' is not a number from 0 to 5"),
        ("g\tf\ty\t3\tnan\tone\ttwo", r"line 3: score 'nan' is not"),
    ],
    ids=["fields", "blank", "text", "range", "nan"],
)
def test_a_malformed_row_is_named_with_its_line(row, message, folder):
    for name in ("train", "dev"):
        (folder / f"sts-{name}.csv").write_text("\n".join([*ROWS, row]))
    with pytest.raises(ValueError, match=rf"sts-dev\.csv, {message}"):
        similarity_pairs()
    with pytest.raises(ValueError, match=rf"sts-train\.csv, {message}"):
        load_task("stsb-texts")


def test_no_rows_and_no_file_are_named(folder):
    (folder / "sts-dev.csv").write_text("")
    with pytest.raises(ValueError, match=r"sts-dev\.csv, line 1: the file has no rows"):
        similarity_pairs()
    (folder / "sts-dev.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"sts-dev\.csv: no such file"):
        similarity_pairs()


def test_without_a_folder_there_are_no_pairs(folder, monkeypatch):
    folder.rename(folder.with_name("other"))
    assert similarity_pairs() is None
    monkeypatch.delenv("COALORA_DATA_DIR")
    assert similarity_pairs() is None


def test_texts_apart_share_nothing_and_are_distinct():
    first = [LONG.format("nine"), "two three", "p q", "p q", "kin"]
    second = ["kin", "alone", "alone", "x", "far"]
    kept, held = apart(Dataset.from_dict({"sentence": first, "second": second}))
    assert held["sentence"][:] == first[:1]
    assert kept["sentence"][:] == ["alone", "p q", "x", "far"]  # no part of it, and not its pair
    assert kept.column_names == held.column_names == ["sentence"]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_a_task_come_from_its_train_alone(name, folder):
    (folder.parent / "SST-2").mkdir()
    texts = [LONG.format(each) for each in "abc"]
    glue = "".join(f"{text}\t1\n" for text in [*texts, texts[0]])
    for file, rows in (("train", glue), ("dev", "the dev set\t1\n")):
        (folder.parent / "SST-2" / f"{file}.tsv").write_text(f"sentence\tlabel\n{rows}")
    pairs = "".join(f"g\tf\ty\t1\t1\t{text}\tshort\n" for text in texts)
    (folder / "sts-train.csv").write_text(pairs)
    splits = load_task(name)
    assert sorted(splits.validation["sentence"]) == texts
    assert splits.train.column_names == ["sentence"]
    assert not set(splits.train["sentence"]) & {"the dev set", *texts}
    assert kinds_of(name) == ("embedding",)
    assert TASKS[name].labels is None


def test_generated_texts_are_held_out_likewise():
    splits = load_task("sst2-texts", source="embedded")
    assert len(splits.validation) > 100
    assert not set(splits.train["sentence"]) & set(splits.validation["sentence"])
    assert kinds_of("embedded") == ("single-label", "embedding")
