"""Folders as GLUE has them: its columns, its quotes that are none, its rows cut short."""

import pytest

from coalora_lib.tasks import TASKS, data_checksum, load_task
from coalora_lib.tasks.data import TUNING
from coalora_lib.tasks.glue import LAYOUTS

MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
    '0\t31\t31n\tslate\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t"It is new.\tIt is old.\tneutral\t{}\n'
)
FILES = {
    "sst2": "sentence\tlabel\n\"a fine\" film \t1\n`` dull ''\t0\n",
    "qnli": "index\tquestion\tsentence\tlabel\n0\tWho?\t\"Ada\" wrote.\tnot_entailment\n"
    '1\t"Where?\tIn "Rome\tentailment\n',
    "mnli": MNLI.format("contradiction"),
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "7\t1\t2\tWhat is \"x\"?\t\"What\t1\n",
}  # fmt: skip
ROWS = {
    "sst2": [('"a fine" film', 1), ("`` dull ''", 0)],
    "qnli": [("Who?", '"Ada" wrote.', 1), ('"Where?', 'In "Rome', 0)],
    "mnli": [('"It is new.', "It is old.", 2)],
    "qqp": [('What is "x"?', '"What', 1)],
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with GLUE's tasks, in GLUE's spelling."""
    monkeypatch.setenv("COALORA_DATA_DIR", str(tmp_path))
    for name, content in FILES.items():
        folder = tmp_path / LAYOUTS[name].folder
        folder.mkdir()
        for file in ("train.tsv", LAYOUTS[name].validation):
            (folder / file).write_text(content)
    return tmp_path


def rows(split):
    return [tuple(row.values()) for row in split]


def test_every_task_with_classes_has_a_layout():
    assert set(LAYOUTS) == {name for name in TASKS if TASKS[name].labels} - set(TUNING)
    for name, layout in LAYOUTS.items():
        assert len(layout.classes) == TASKS[name].labels
        assert len(layout.texts) == len(TASKS[name].columns)


@pytest.mark.parametrize("name", FILES)
def test_the_tasks_in_their_own_layout(name, root):
    train, validation = load_task(name)
    assert train.column_names == [*("sentence", "second")[: len(LAYOUTS[name].texts)], "label"]
    assert rows(train) == rows(validation) == ROWS[name]


@pytest.mark.parametrize("spelling", ["qnli", "QNLI", "q-nli"])
def test_spellings_of_a_folder(spelling, root):
    (root / "QNLI").rename(root / spelling)
    assert rows(load_task("qnli").train) == ROWS["qnli"]


def test_our_spelling_goes_first_and_two_others_are_refused(root):
    (root / "sst_2").mkdir()
    with pytest.raises(ValueError, match="SST-2, sst_2: which is 'sst2'"):
        load_task("sst2")
    (root / "sst2").mkdir()
    with pytest.raises(FileNotFoundError, match=r"/sst2/train\.tsv: no such file"):
        load_task("sst2")


@pytest.mark.parametrize("value", ["~/glue", "glue", "./glue/"])
def test_home_and_relative_folders(value, root, tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    (home / "glue").symlink_to(root)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    monkeypatch.setenv("COALORA_DATA_DIR", value)
    assert rows(load_task("qqp").train) == ROWS["qqp"]


def test_a_folder_that_is_not_there(root, monkeypatch):
    (root / "QQP").rename(root / "quora")
    with pytest.raises(FileNotFoundError, match=r"qqp: no such folder; there are: MNLI, QNLI, SST"):
        load_task("qqp")
    monkeypatch.setenv("COALORA_DATA_DIR", str(root / "glue"))
    with pytest.raises(FileNotFoundError, match="glue: no such folder"):
        load_task("qqp")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: ("\n" + text.replace("\n", "\n\n\t\n") + "  \n").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: text.encode("utf-16"),
    ],
    ids=["mark", "crlf", "cr", "blank", "no-end", "utf-16"],
)
@pytest.mark.parametrize("name", FILES)
def test_wild_files_are_the_same_data(name, change, root):
    before = data_checksum(load_task(name))
    for file in (root / LAYOUTS[name].folder).iterdir():
        file.write_bytes(change(file.read_text()))
    assert data_checksum(load_task(name)) == before


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "qnli",
            "2\tWho?\tAda.\tmaybe\n",
            r"line 4: label 'maybe' is not one of entailment, not_e",
        ),
        ("qnli", "2\tWho?\tAda.\n", r"line 4: expected index<TAB>question<TAB>sentence<TAB>label"),
        ("qnli", "2\tWho?\tAda.\tx\tentailment\n", "line 4: expected"),
        ("qnli", "2\t\t \tentailment\n", "line 4: expected"),
        ("qnli", b"2\tWho?\t\xe9\tentailment\n", "line 4: not UTF-8"),
        ("mnli", MNLI.format("-").partition("\n")[2], "line 3: label '-' is not one of entailm"),
        ("mnli", "cut\tshort\n", "line 3: expected index"),
        ("qqp", "7\t1\t2\ta\tb\tc\t1\n", "line 3: expected id"),
        ("qqp", "7\t1\t2\ta\tb\t\n", "line 3: label '' is not one of 0, 1"),
        ("qnli", "x" * 9000 + "\n", r"line 4: expected .*, got 'x{199}$"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(name, row, message, root):
    path = root / LAYOUTS[name].folder / LAYOUTS[name].validation
    path.write_bytes(path.read_bytes() + (row if isinstance(row, bytes) else row.encode()))
    with pytest.raises(ValueError, match=rf"{LAYOUTS[name].validation}, {message}"):
        load_task(name)


def test_a_header_without_the_columns_is_refused(root):
    (root / "QQP" / "train.tsv").write_text("question1\tquestion2\tlabel\na\tb\t1\n")
    with pytest.raises(
        ValueError, match=r"line 1: the header must be question1<TAB>question2<TAB>is"
    ):
        load_task("qqp")


def test_questions_cut_by_a_line_feed_are_left_out_with_a_warning(root):
    cut = "8\t3\t4\tHow does\none do it?\tHow?\t1\n9\t5\t6\t\tIs one empty?\t0\n"
    (root / "QQP" / "train.tsv").write_text(FILES["qqp"] + cut)
    with pytest.warns(UserWarning, match=r"train\.tsv: incomplete rows are left out, lines 3, 4$"):
        train = load_task("qqp").train
    assert rows(train) == [*ROWS["qqp"], ("", "Is one empty?", 0)]
