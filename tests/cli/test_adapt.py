"""`coalora adapt --no-training`, from a model and a file of texts to a folder."""

import json

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from coalora_lib.cli import app
from coalora_lib.tasks.embedded import review_phrases

TEXTS = "\n".join(dict.fromkeys(text for text, _ in review_phrases(60, 0)))


def coalora(*words):
    return CliRunner().invoke(app, ["adapt", *map(str, words)], prog_name="coalora")


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_a_model_and_texts_become_an_adapter(kind, tiny_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text(TEXTS)
    words = [
        tiny_folders[kind], "--no-training", "--texts", "texts.txt", "--bits", 2.25, "--rank", 4,
        "--count", 30, "--max-length", 16, "--out", "phone",
    ]  # fmt: skip
    found = coalora(*words)
    assert found.exit_code == 0, found.stderr
    assert "to the unquantized model" in found.stdout
    assert "beside the 30 fitted to" in found.stdout
    AutoTokenizer.from_pretrained("phone/base_model")
    again = coalora(*words, "--json")  # its own folder, which it may replace
    content = json.loads(again.stdout)
    nearest = json.loads(coalora(*words, "--rounding", "nearest", "--json").stdout)
    assert (nearest["before"], nearest["bytes"]) == (content["before"], content["bytes"])
    assert nearest["after"] != content["after"]
    assert content["after"] < content["before"]
    assert content["texts"]["fitted"] == 30
    assert content["bits"] <= 2.25


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--no-training"], "--no-training needs --texts: a file of texts to fit the adapter to"),
        (["--texts", "t.txt"], "--texts is for --no-training only"),
        (["--max-length", "16"], "--max-length is for --no-training only"),
        (["--no-training", "--texts", "t.txt"], "t.txt: no such file"),
        (["--no-training", "--texts", "t.txt", "--weights", "all"], "--weights all is not known"),
        (["--no-training", "--texts", "t.txt", "--dtype", "int8"], "dtype: Input should be"),
        (["--no-training", "--texts", "t.txt", "--rounding", "up"], "rounding: Input should be"),
        (["--rounding", "nearest"], "--rounding is for --no-training only"),
        (["--no-training", "--texts", "t.txt", "--device", "d.yaml"], "give either --bits or"),
        ([], "model is not a run: it has no run.json"),
    ],
    ids=[
        "texts",
        "training",
        "length",
        "file",
        "weights",
        "dtype",
        "rounding",
        "rounding of a run",
        "device",
        "run",
    ],
)
def test_what_does_not_go_together_is_one_line(words, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = coalora("model", "--bits", 3, "--out", "phone", *words)
    assert found.exit_code == 2
    assert found.stderr.startswith(f"coalora: {line}")
    assert len(found.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
