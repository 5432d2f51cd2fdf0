"""A run, and a model with texts, become files for llama.cpp, for a device that takes some types."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from coalora_lib.cli import app
from coalora_lib.gguf import Options
from coalora_lib.recipes import Device, Settings, adapt, read_device, train_run
from tests.gguf.llamacpp import needs_llamacpp, run
from tests.gguf.models import MODELS, TEXTS, TOKENIZERS
from tests.gguf.test_llamacpp import ROUNDED, distance


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tiny models with their tokenizers."""
    root, found = tmp_path_factory.mktemp("models"), {}
    for kind in ("bert", "llama"):
        torch.manual_seed(0)
        found[kind] = root / kind
        MODELS[kind]().save_pretrained(found[kind])
        TOKENIZERS[kind]().save_pretrained(found[kind])
    return found


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """A finished run of a tiny decoder over the space gguf."""
    folder = tmp_path_factory.mktemp("runs")
    pd.DataFrame({"text": TEXTS[:40]}).to_csv(folder / "texts.csv", index=False)
    settings = Settings(
        model=str(folders["llama"]), data=str(folder / "texts.csv"), space="gguf", rank=4, epochs=1,
        budgets=(3.5, 6.0), batch_size=8, configurations=2, max_length=16,
    )  # fmt: skip
    return train_run(folder / "run", settings)


@needs_llamacpp
def test_a_run_becomes_files_that_compute_the_same(trained, tmp_path):
    made = adapt(trained, tmp_path / "phone", Device(bits=4.0), gguf=Options(embedding="Q8_0"))
    assert made.bits <= 4.0
    assert set(made.files) == {"base.gguf", "adapter.gguf"}
    model = trained.load_model().eval()
    model.set_configuration(4.0)
    tokens = trained.load_tokenizer()(TEXTS[3]).input_ids
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1).numpy()
    (found,) = run(made.folder, "logits", [tokens], 1.0)
    assert distance(np.array(found), expected) < ROUNDED


def test_a_device_has_a_size_and_some_types(trained, tmp_path):
    path = tmp_path / "device.yaml"
    path.write_text("size: 1300kB\nallowed: {type: [Q4_0, Q8_0]}\n")
    made = adapt(trained, tmp_path / "phone", read_device(path), gguf=Options())
    assert made.files["base.gguf"] <= 1_300_000
    assert {choice.type for choice in made.layers.values()} == {"Q4_0", "Q8_0"}
    path.write_text("size: 500kB\n")
    with pytest.raises(
        ValueError,
        match=r"of 500000 on 'bytes of base\.gguf' is not feasible: the smallest is \d+$",
    ):
        adapt(trained, tmp_path / "other", read_device(path), gguf=Options())
    with pytest.raises(ValueError, match="size: 500000 is of a GGUF file, and none is written"):
        adapt(trained, tmp_path / "other", read_device(path))
    path.write_text("bits: 4\nallowed: {type: [Q4_2]}\n")
    with pytest.raises(ValueError, match=r"type=\('Q4_2',\) is not among \('Q6_K', "):
        adapt(trained, tmp_path / "other", read_device(path), gguf=Options())
    assert not (tmp_path / "other").exists()


def coalora(*words):
    return CliRunner().invoke(app, ["adapt", *map(str, words)], prog_name="coalora")


def fitted(model, *words):
    words = words if "--device" in words else ("--bits", 5, *words)
    return coalora(
        model, "--no-training", "--texts", "texts.txt", "--count", 30, "--rank", 4,
        "--max-length", 16, "--format", "gguf", "--out", "phone", *words,
    )  # fmt: skip


def test_a_model_and_texts_become_files(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:60]))
    found = fitted(folders["bert"])
    assert found.exit_code == 0, found.stderr
    assert "layers, adapter.gguf 0." in found.stdout
    content = json.loads(fitted(folders["bert"], "--embedding", "Q8_0", "--json").stdout)
    assert content["after"] < content["before"]
    size = (tmp_path / "phone" / "base.gguf").stat().st_size
    assert content["files"]["base.gguf"] == size
    nearest = json.loads(fitted(folders["bert"], "--rounding", "nearest", "--json").stdout)
    assert nearest["after"] == content["after"]  # the only codes of this space


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--format", "onnx"], "--format onnx is not known; allowed: peft, gguf"),
        (["--weights", "packed"], "--weights is for --format peft only"),
        (["--embedding", "Q3"], "embedding='Q3' is not known; allowed: Q6_K, "),
        (["--format", "peft", "--pooling", "cls"], "--pooling is for --format gguf only"),
        (["--space", "nf"], "the layers are quantized in the space 'nf', which llama.cpp"),
        (
            ["--device", "k.yaml"],
            "layer encoder.layer.0.attention.self.query of shape (64, 64) has no allowed choice",
        ),
        (["--bits", "2"], "a budget of 2.0 bits is not feasible: the smallest is 3."),
    ],
    ids=["format", "weights", "embedding", "pooling", "space", "types", "bits"],
)
def test_what_does_not_go_together_is_one_line(words, line, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:60]))
    (tmp_path / "k.yaml").write_text("allowed: {type: [Q4_K, Q6_K]}")
    found = fitted(folders["bert"], *words)
    assert found.exit_code == 2
    assert found.stderr.splitlines()[-1].startswith(f"coalora: {line}")
    assert not (tmp_path / "phone").exists()


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (
            "llama",
            "a tokenizer of the kind WordLevel cannot be written as GGUF; allowed: WordPiece",
        ),
        (
            "gpt2",
            "a GPT2LMHeadModel cannot be written as GGUF; allowed: BertModel, LlamaForCausalLM",
        ),
    ],
    ids=["tokenizer", "architecture"],
)
def test_what_llamacpp_does_not_take_is_one_line_before_anything_is_fitted(
    kind, line, tiny_folders, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:60]))
    found = fitted(tiny_folders[kind])
    assert found.exit_code == 2
    assert found.stderr.splitlines()[-1].startswith(f"coalora: {line}")
    assert not (tmp_path / "phone").exists()
