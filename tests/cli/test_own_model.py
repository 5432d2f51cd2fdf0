"""train, evaluate, adapt and report, after a process that was killed; two processes of one run."""

import json
import os
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer
from typer.testing import CliRunner

from coalora_lib.cli import app
from coalora_lib.cli.models import bit_list, bit_range
from coalora_lib.recipes import RunFolder, Settings, train_run
from coalora_lib.tasks.embedded import review_phrases

COALORA = [sys.executable, "-m", "coalora_lib"]


def coalora(*words):
    """The command's JSON."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_four_commands_and_a_kill_between(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [(text, ("bad", "good")[label]) for text, label in review_phrases(200, 0)]
    pd.DataFrame(rows, columns=["review", "stars"]).to_csv(tmp_path / "reviews.csv", index=False)
    words = [
        "train", "--model", small_run.profile.model, "--data", "reviews.csv", "--text", "review",
        "--label", "stars", "--budgets", "2.25-5", "--out", "run", "--rank", "4", "--epochs", "8",
        "--configurations", "4", "--batch-size", "8",
    ]  # fmt: skip
    killed = subprocess.Popen([*COALORA, *words], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("run/checkpoints/step-*")):
        assert killed.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert RunFolder.open(tmp_path / "run").described.outcome is None
    trained = coalora(*words)
    assert trained["classes"] == ["bad", "good"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    measured = coalora("evaluate", "run", "--data", "reviews.csv", "--bits", "3")
    assert measured["metrics"][0]["accuracy"] >= 0.5
    adapted = coalora("adapt", "run", "--bits", "3.1", "--out", "phone")
    assert 2.9 < adapted["bits"] <= 3.1
    reported = coalora("report", "run", "--picture", "run.png")
    assert len(reported["layers"]) == 12
    assert (tmp_path / "run.png").stat().st_size > 10_000

    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "phone").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "phone" / "base_model")
    batch = tokenizer(rows[0][0], return_tensors="pt")
    model = RunFolder.open(tmp_path / "run").load_model().eval()
    model.set_configuration(3.1)
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, model(**batch).logits)


@pytest.mark.slow
def test_two_processes_of_accelerate_write_the_run_of_one(small_run, tmp_path):
    rows = [(text, ("bad", "good")[label]) for text, label in review_phrases(60, 0)]
    table = tmp_path / "reviews.csv"
    pd.DataFrame(rows, columns=["text", "stars"]).to_csv(table, index=False)
    settings = Settings(
        model=small_run.profile.model, data=str(table), label="stars", rank=4, configurations=4,
        epochs=2, batch_size=8, searches=1,
    )  # fmt: skip
    one = train_run(tmp_path / "one", settings).outcome
    words = [
        "train", "--model", settings.model, "--data", table, "--label", "stars", "--rank", 4,
        "--configurations", 4, "--epochs", 2, "--batch-size", 8, "--searches", 1,
        "--out", tmp_path / "two", "--json",
    ]  # fmt: skip
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "--mixed_precision=no", "--dynamo_backend=no",
         "-m", "coalora_lib", *map(str, words)],
        capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    two = RunFolder.open(tmp_path / "two").outcome
    assert json.loads(done.stdout)["metrics"] == two.metrics  # printed once
    assert two.examples == one.examples
    assert two.losses == pytest.approx(one.losses, rel=1e-3)
    assert [row["bits"] for row in two.metrics] == [row["bits"] for row in one.metrics]


def test_bits_are_read_from_texts():
    assert bit_range("2.25-5") == (2.25, 5)
    assert bit_range("3") == (3, 3)
    assert bit_list("2.5,3, 4") == [2.5, 3, 4]
    for text in ("", "5-2", "a-b", "1-2-3", "-3", "nan", "inf"):
        with pytest.raises(ValueError, match=r"is not a range of bits; allowed: such as 2.25-5"):
            bit_range(text)
    for text in ("", "0", "2;3", "nan"):
        with pytest.raises(ValueError, match=r"are not numbers; allowed: such as 2.5,3,4"):
            bit_list(text)


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan"])
@pytest.mark.parametrize("option", ["--alpha", "--epochs", "--learning-rate", "--bits"])
def test_a_number_above_zero_is_asked_for_and_nothing_else_is_taken(option, value, tmp_path):
    words = ["adapt", "run"] if option == "--bits" else ["train", "--data", "t.csv"]
    found = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), option, value])
    assert found.exit_code == 2
    assert f"Invalid value for '{option}': {value} is not a number above 0" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    text = CliRunner().invoke(app, [words[0], "--help"], terminal_width=200).stdout
    (line,) = (each for each in text.splitlines() if each.strip().startswith(f"{option} "))
    assert "above 0." in line
    assert "x>=" not in line
