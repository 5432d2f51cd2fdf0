from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from coalora_lib.cli import app
from coalora_lib.experiments import PROFILES, Run, prepare
from coalora_lib.experiments.comparison import Job, all_jobs, path_of, plan_of, run_job
from coalora_lib.experiments.methods import ABLATIONS, EVERY_METHOD, ablations_of
from coalora_lib.experiments.pool import run_all, visible_gpus
from coalora_lib.experiments.records import pack, read_record, read_records, write_record
from tests.conftest import SMALLEST

PROFILE = replace(
    PROFILES["quick"],
    dtype="float32",
    **SMALLEST,
    batch_size=8,
    budgets=(3.0, 4.0),
    arbitrary_configurations=2,
    search=replace(PROFILES["quick"].search, restarts=1, max_steps=2, proposals=1),
)
RUN = Run(PROFILE, 0)


@pytest.fixture(scope="module")
def setup():
    return prepare(RUN)


def test_jobs_are_one_a_budget_where_the_method_needs_it():
    jobs = all_jobs(PROFILE, [4], [0, 1], ["CoA-LoRA", "LQ-LoRA", "full fine-tuning"])
    assert len(jobs) == 2 * (1 + 2 + 1)
    assert len({path_of(job, RUN, "x") for job in jobs}) == len(jobs)
    assert [job.seed for job in jobs] == [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="method='LoRA' is not known; allowed: CoA-LoRA; CoA"):
        all_jobs(PROFILE, [4], [0], ["LoRA"])


@pytest.mark.parametrize("count", [1, 2])
def test_an_ablation_that_changes_nothing_is_left_out(count):
    left_out = set(ABLATIONS) - set(ablations_of(replace(PROFILE, configurations_per_step=count)))
    assert left_out == {"1 configuration a step" if count == 1 else "2 configurations a step"}


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_every_method_runs_on_its_targets(method, setup, tmp_path):
    (job, *_) = all_jobs(PROFILE, [4], [0], [method])
    record = read_record(run_job(setup, job, tmp_path))
    budgets = [result.budget for result in record.results]
    kind = EVERY_METHOD[method].trains_on
    assert len(record.twins) == (3 if kind == "set" else 0)
    if kind == "set":
        assert budgets == [3.0, 4.0, None, None]
        assert len(record.searches) == EVERY_METHOD[method].searches
    else:
        assert budgets == [3.0 if kind == "budget" else None]
    assert record.rank == 4
    assert record.parameters["rank"] == 4
    phases = {"preparation", "training", "search", "evaluation"}
    assert set(record.phases) - {"teacher"} == phases
    assert ("teacher" in record.phases) == (method.removeprefix("Shared-LoRA, ") == "distillation")
    assert record.stored > 0
    at_least = EVERY_METHOD[method].configurations_per_step or 1  # one step
    for result in record.results:
        assert result.correctness.mean() == pytest.approx(result.accuracy)
        assert result.passes == max(setup.plan.steps, at_least)


def test_without_the_filter_a_search_drops_nothing(setup, tmp_path):
    record = read_record(run_job(setup, Job("no filter", 4, 0), tmp_path))
    for found in record.searches:
        assert found.kept == list(range(len(found.configurations)))


def test_a_method_trains_at_its_rate(setup):
    plan = plan_of(setup, EVERY_METHOD["full fine-tuning"])
    assert plan.learning_rate == pytest.approx(0.05 * PROFILE.learning_rate)
    assert plan_of(setup, EVERY_METHOD["QLoRA"]).learning_rate == PROFILE.learning_rate


def test_bit_widths_are_counted(setup, tmp_path):
    stored = {
        name: read_record(run_job(setup, Job(name, 4, 0), tmp_path)).stored
        for name in ("Shared-LoRA", "LoRA by bit width")
    }
    assert stored["LoRA by bit width"] == 4 * stored["Shared-LoRA"]


def test_the_pool_makes_what_is_missing_and_goes_on_after_a_failure(tmp_path, monkeypatch):
    jobs = [Job("Shared-LoRA", 4, 0), Job("QLoRA", 4, 0, 3.0)]
    done = list(run_all(jobs[:1], RUN, tmp_path, 1))
    assert [job for job, _ in done] == jobs[:1]
    before = done[0][1].stat().st_mtime_ns
    broken = Job("QLoRA", 4, 0, 1.0)  # no configuration has so few bits
    rest = run_all([broken, *jobs], RUN, tmp_path, 1)
    assert next(rest)[0] == jobs[1]
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed; first .*budget=1\.0"):
        next(rest)
    assert done[0][1].stat().st_mtime_ns == before


def test_correctness_is_packed_and_unpacked(setup, tmp_path):
    record = read_record(run_job(setup, Job("QLoRA", 4, 0, 3.0), tmp_path))
    for count in (1, 8, 13):
        right = torch.rand(count) < 0.5
        update = {"correct": pack(right), "examples": count}
        result = record.results[0].model_copy(update=update)
        assert np.array_equal(result.correctness, right.numpy())
    with pytest.raises(ValueError, match="no correctness per example"):
        _ = record.results[0].model_copy(update={"correct": None}).correctness


def test_records_of_other_code_are_refused_unless_told(setup, tmp_path):
    record = read_record(run_job(setup, Job("QLoRA", 4, 0, 3.0), tmp_path))
    write_record(record.model_copy(update={"seed": 1, "code": "other"}), tmp_path)
    with pytest.raises(ValueError, match="differ in code: qlora-rank4-3bits-embedded"):
        read_records(tmp_path)
    assert len(read_records(tmp_path, mixed=True)) == 2
    parameters = record.parameters | {"rank": 8}
    write_record(record.model_copy(update={"seed": 1, "parameters": parameters}), tmp_path)
    with pytest.raises(ValueError, match="differ in parameters"):
        read_records(tmp_path)
    assert len(read_records(tmp_path, varying=["rank"])) == 2


@pytest.mark.parametrize("code", [None, "0" * 64])
def test_a_record_is_made_again_and_older_code_is_named(code, setup, tmp_path):
    path = run_job(setup, Job("Shared-LoRA", 4, 0), tmp_path / "stored")
    stored = read_record(path)
    if code is not None:
        write_record(stored.model_copy(update={"code": code}), tmp_path / "stored")
    made = CliRunner().invoke(app, ["reproduce", str(path), "--results", str(tmp_path / "made")])
    assert made.exit_code == 0, made.output
    assert ("another version of the library" in made.stderr) == (code is not None)
    again = read_record(tmp_path / "made" / path.name)
    assert [r.correct for r in again.results] == [r.correct for r in stored.results]
    assert f"{100 * stored.results[0].accuracy:.2f}, " in made.stdout


@pytest.mark.parametrize(
    ("named", "count", "expected"),
    [(None, 2, ["0", "1"]), ("2,5", 2, ["2", "5"]), (None, 0, [""]), ("", 0, [""])],
)
def test_the_pool_keeps_to_the_gpus_it_is_given(named, count, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert visible_gpus() == expected
