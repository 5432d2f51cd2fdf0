"""Tables of records."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from coalora_lib.cli import app
from coalora_lib.records import Job, Record, Result, frame, write_record

ABOUT = {
    "created": "2026-01-01T00:00:00+00:00",
    "dataset": "embedded",
    "synthetic": True,
    "data_checksum": "0",
    "model": "m",
    "model_checksum": "0",
    "profile": "quick",
    "parameters": {"epochs": 1},
    "device": "cpu",
    "versions": {},
    "git_commit": None,
}


def write(folder, protocol, job, **measured):
    """A record of one result."""
    counts = {"budget": 3.0, "bits": 3.0, "examples": 8, "seconds": 1.0, "steps": 1, "passes": 1}
    record = Record(protocol=protocol, job=job, results=[Result(**counts | measured)], **ABOUT)
    return write_record(record, folder)


@pytest.fixture
def folder(tmp_path):
    """Two methods at two ranks with three seeds, made by two protocols: the second is better."""
    for lead, protocol in enumerate(("comparison-1", "comparison-2")):
        for seed in range(3):
            for rank in (4, 8):
                accuracy = 0.8 + 0.01 * seed + 0.02 * lead + 0.001 * rank
                job = Job("coa-lora", rank, seed)
                write(tmp_path / protocol, protocol, job, accuracy=accuracy, loss=0.5)
    return tmp_path


@pytest.fixture
def embeddings(tmp_path):
    """One method with two seeds, whose results have no accuracy."""
    for seed in range(2):
        measured = {"loss": 0.1 + 0.02 * seed, "neighbours": 0.4 + 0.1 * seed}
        job = Job("recovery-coa-lora", 8, seed)
        write(tmp_path / "embeddings", "recovery-1", job, accuracy=None, **measured)
    return tmp_path / "embeddings"


def invoke(*words):
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(word) for word in words])


def table(*words):
    found = invoke("results", *words, "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_means_over_seeds_have_intervals_and_protocols_stand_apart(folder):
    rows = table(folder, "--by", "method,rank")
    assert [(row["protocol"], row["rank"], row["seeds"]) for row in rows] == [
        (protocol, rank, 3) for protocol in ("comparison-1", "comparison-2") for rank in (4, 8)
    ]
    assert rows[0]["accuracy"] == pytest.approx(81.4)
    assert rows[0]["low"] == pytest.approx(81.4 - 2.48, abs=0.01)
    one = table(
        folder, "--where", "protocol=comparison-2", "--where", "rank=8", "--where", "seed=0"
    )
    assert [(row["accuracy"], row["low"]) for row in one] == [(pytest.approx(82.8), None)]


def test_without_accuracies_the_table_is_of_losses_or_what_is_asked_for(embeddings):
    (row,) = table(embeddings, "--by", "method")
    assert (row["loss"], row["seeds"]) == (pytest.approx(0.11), 2)
    assert row["low"] == pytest.approx(0.11 - 12.706 * 0.01, abs=1e-4)
    (row,) = table(embeddings, "--metric", "neighbours")
    assert row["neighbours"] == pytest.approx(45)


def test_results_with_and_without_accuracy_stand_in_one_table(folder, embeddings):
    rows = table(folder, "--by", "method")
    assert [row["accuracy"] is None for row in rows] == [False, False, True]
    losses = table(folder, "--by", "method", "--metric", "loss")
    assert [row["loss"] for row in losses] == [0.5, 0.5, pytest.approx(0.11)]


def test_two_protocols_are_compared_over_the_seeds_of_both(folder):
    rows = table(folder, "--by", "rank", "--compare", "comparison-1", "comparison-2")
    assert [row["rank"] for row in rows] == [4, 8]
    for row in rows:
        assert row["difference"] == pytest.approx(2)
        assert (row["low"], row["high"]) == (pytest.approx(2), pytest.approx(2))


@pytest.mark.parametrize("name", ["all.parquet", "all.csv"])
def test_the_rows_are_the_books(name, folder, tmp_path):
    assert invoke("results", folder, "--out", tmp_path / name).exit_code == 0
    read = pd.read_parquet if name.endswith("parquet") else pd.read_csv
    assert list(read(tmp_path / name).columns) == list(frame_columns(folder))
    assert len(read(tmp_path / name)) == 12


def frame_columns(folder):
    from coalora_lib.batch.results import read_below

    return frame(read_below(folder)).columns


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--where", "metod=x"], "column='metod' is not known; did you mean method?"),
        (["--where", "rank=5"], "rank='5' is not known; allowed: 4, 8"),
        (["--where", "rank"], "'rank' must be column=value"),
        (
            ["--metric", "f1"],
            "'f1' is not known; allowed: accuracy, loss, neighbours, spearman, agreement",
        ),
        (["--metric", "spearman"], "no result has spearman"),
        (["--by", "ranks"], "column='ranks' is not known; did you mean rank?"),
        (["--compare", "comparison-1", "comparison-3"], "protocol='comparison-3' is not known"),
        (["--out", "x.txt"], "format '.txt' is not known; allowed: .parquet, .csv"),
        (["--mlflow", "file:x"], 'install it with: pip install "coalora-lib[mlflow]"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_known_is_named(words, message, folder):
    found = invoke("results", folder, *words)
    assert found.exit_code == 2
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_a_folder_without_records_is_named(tmp_path):
    found = invoke("results", tmp_path)
    assert found.exit_code == 2
    assert f"{tmp_path} holds no records" in found.stderr
