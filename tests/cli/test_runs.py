"""The commands that train, on the smallest runs."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from coalora_lib.cli import app
from coalora_lib.cli.names import compared
from coalora_lib.experiments import PROFILES
from coalora_lib.experiments.methods import compared_for, methods_of
from coalora_lib.experiments.runner import job_for, run_job
from coalora_lib.records import read_record, write_record


def invoke(*words):
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("protocol", [None, "comparison-0"])
def test_a_record_is_made_again_and_an_older_protocol_is_named(protocol, small_setup, tmp_path):
    path = run_job(small_setup, job_for("shared-lora", 4, 0), tmp_path / "stored")
    stored = read_record(path)
    if protocol is not None:
        write_record(stored.model_copy(update={"protocol": protocol}), tmp_path / "stored")
    made = invoke("reproduce", path, "--results", tmp_path / "made")
    assert made.exit_code == 0, made.output
    assert ("Made by protocol comparison-0" in made.stderr) == (protocol is not None)
    again = read_record(tmp_path / "made" / path.name)
    assert [r.correct for r in again.results] == [r.correct for r in stored.results]
    assert f"{100 * stored.results[0].accuracy:.2f} %, " in made.stdout


def test_what_is_no_record_cannot_be_made_again(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    for name in ("x.json", "missing.json"):
        found = invoke("reproduce", tmp_path / name)
        assert found.exit_code == 2
        assert name in found.output.replace("\n", "")


@pytest.mark.parametrize(
    ("command", "option", "group"),
    [("experiments", "--method", "main"), ("search-ablation", "--arm", "search")],
)
def test_a_label_is_no_name_in_a_command(command, option, group, tmp_path):
    label = next(iter(methods_of(group).values())).label
    found = invoke(command, option, label, "--results", tmp_path)
    assert found.exit_code == 2
    assert "is not known" in found.output


def test_every_method_that_is_compared_can_be_named():
    every = set(compared())
    assert every >= {slug for each in PROFILES.values() for slug in compared_for(each)}
    assert every >= set(methods_of("deployment"))


def test_runs_that_are_there_are_not_made_again(small_run, small_setup, tmp_path, monkeypatch):
    monkeypatch.setitem(PROFILES, "quick", replace(small_run.profile, name="quick"))
    path = run_job(small_setup, job_for("shared-lora", 4, 0), tmp_path)
    words = ["experiments", "--rank", "4", "--method", "shared-lora", "--results", tmp_path]
    before = path.stat().st_mtime_ns
    found = invoke(*words)
    assert found.exit_code == 0, found.output
    assert "0 made, 1 there, 0 failed" in found.stdout
    # Another rate is not taken for the same run.
    other = invoke(*words, "--learning-rate", 0.5)
    assert other.exit_code == 2
    assert "parameters.learning_rate is 0.001 there, 0.5 is wanted" in other.stderr
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("command", ["experiments", "options", "search-ablation"])
def test_data_that_are_not_for_the_profile_are_refused_once(command, tmp_path):
    words = ["--profile", "quick", "--dataset", "c4", "--results", tmp_path / "made"]
    found = invoke(command, *words)
    assert found.exit_code == 2
    assert found.stderr.count("data set 'c4' is for causal-lm or next-token") == 1
    assert not (tmp_path / "made").exists()
