"""A model is found by the name that files record, whatever folder a command is given in."""

import json
import shutil

import pandas as pd
import pytest
from peft import AutoPeftModelForFeatureExtraction
from transformers import AutoModel

from coalora_lib.adapter import CoaLora
from coalora_lib.packaged import MINILM
from coalora_lib.recipes import (
    Device,
    RunFolder,
    Settings,
    adapt_to_texts,
    evaluate_run,
    train_run,
)
from coalora_lib.tasks import load_classifier
from coalora_lib.tasks.embedded import review_phrases
from coalora_lib.tasks.models import load_as_saved

PHRASES = review_phrases(30, 0)
SMALL = {"rank": 2, "epochs": 1, "batch_size": 8, "configurations": 2, "max_length": 16}


@pytest.fixture
def home(tiny_folders, tmp_path, monkeypatch):
    """The folder that ``~`` is, and that commands are given in, with a model and a table."""
    shutil.copytree(tiny_folders["bert"], tmp_path / "home" / "tiny")
    table = pd.DataFrame(PHRASES, columns=["text", "label"])
    table.to_csv(tmp_path / "home" / "t.csv", index=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


@pytest.mark.parametrize("before", ["", "./", "~/", "../home/"])
def test_a_run_is_used_and_continued_from_another_folder(before, home, tmp_path, monkeypatch):
    asked = {"label": "label", **SMALL}
    settings = Settings(model=f"{before}tiny", data="t.csv", validation="~/t.csv", **asked)
    run = train_run("run", settings)
    monkeypatch.chdir(tmp_path)
    run = RunFolder.open(home / "run")
    assert len(evaluate_run(run, [3.0], "~/t.csv")) == 1
    (table, model), written = (str(home / each) for each in ("t.csv", "tiny")), run.described
    there = Settings(model=model, data="home/t.csv", validation=table, **asked)
    assert train_run(run.path, there).described == written


@pytest.mark.parametrize("weights", [None, "packed", "base_model"])
@pytest.mark.parametrize("before", ["", "~/"])
def test_an_adapter_names_its_base_for_any_folder(weights, before, home, tmp_path, monkeypatch):
    texts, device = [text for text, _ in PHRASES], Device(bits=3)
    asked = {"rounding": "nearest", "rank": 2, "max_length": 16}
    adapt_to_texts(f"{before}tiny", texts, "phone", device, weights, **asked)
    about = json.loads((home / "phone" / "adapter_config.json").read_text())
    base = home / ("phone/base_model" if weights == "base_model" else "tiny")
    assert about["base_model_name_or_path"] == str(base)
    monkeypatch.chdir(tmp_path)
    if weights != "packed":
        AutoPeftModelForFeatureExtraction.from_pretrained(home / "phone")


def test_a_saved_model_is_loaded_from_another_folder(home, monkeypatch):
    model = CoaLora.attach(load_classifier("~/tiny")[0], rank=2, alpha=2)
    model.save_pretrained("saved")
    monkeypatch.chdir("/")
    assert CoaLora.from_pretrained(home / "saved").name_or_path == str(home / "tiny")
    model.get_base_model().name_or_path = "~/tiny"  # as older folders have it
    model.save_pretrained(home / "saved")
    assert CoaLora.from_pretrained(home / "saved").name_or_path == str(home / "tiny")


def test_a_base_that_transformers_loaded_from_a_relative_folder(home, monkeypatch):
    model = CoaLora.attach(AutoModel.from_pretrained("tiny"), rank=2, alpha=2)
    model.save_pretrained("saved")
    model.export_peft_adapter("phone", 3.0)
    monkeypatch.chdir("/")
    assert CoaLora.from_pretrained(home / "saved").name_or_path == str(home / "tiny")
    AutoPeftModelForFeatureExtraction.from_pretrained(home / "phone")


def test_the_packaged_model_keeps_its_name_when_it_is_loaded_and_saved_again(
    home, packaged, tmp_path
):
    packaged(str(home / "tiny"))
    model = CoaLora.attach(load_as_saved(MINILM)[0], rank=2, alpha=2, heads=())
    for folder in ("saved", "again"):
        model.save_pretrained(tmp_path / folder)
        model = CoaLora.from_pretrained(tmp_path / folder)
        about = json.loads((tmp_path / folder / "coalora.json").read_text())
        assert model.name_or_path == about["base_name"] == MINILM
    texts = [text for text, _ in PHRASES]
    adapt_to_texts(tmp_path / "again", texts, "phone", Device(bits=3), "packed", rank=2)
    about = json.loads((home / "phone" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == MINILM


def test_the_packaged_model_has_a_short_name(home, packaged):
    packaged(str(home / "tiny"))
    settings = Settings(model="all-MiniLM-L6-v2", data="t.csv", label="label", **SMALL)
    run = train_run("run", settings)
    assert run.settings.model == run.load_model().name_or_path == MINILM
    assert train_run("run", settings.model_copy(update={"model": MINILM})).described.outcome
    assert load_classifier("all-MiniLM-L6-v2")[0].name_or_path == MINILM
    texts = [text for text, _ in PHRASES]
    adapt_to_texts("all-MiniLM-L6-v2", texts, "phone", Device(bits=3), "packed", rank=2)
    (home / "tiny").rename("all-MiniLM-L6-v2")
    folder = str(home / "all-MiniLM-L6-v2")
    assert load_classifier("all-MiniLM-L6-v2")[0].name_or_path == folder
