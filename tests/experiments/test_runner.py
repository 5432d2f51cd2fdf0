import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coalora_lib.experiments import PROFILES, Run, prepare
from coalora_lib.experiments.methods import (
    METHODS,
    UNIFORM_DRAWS,
    UNSEEN_BUDGETS,
    ablations_of,
    methods_of,
)
from coalora_lib.experiments.pool import run_all, visible_gpus
from coalora_lib.experiments.runner import (
    all_jobs,
    job_for,
    path_of,
    plan_of,
    run_job,
    run_of,
    targets_of,
)
from coalora_lib.records import Job, read_record
from coalora_lib.records.schema import as_text
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
    jobs = all_jobs(PROFILE, [4], [0, 1], ["coa-lora", "lq-lora", "full-fine-tuning"])
    assert len(jobs) == 2 * (1 + 2 + 1)
    assert len({path_of(job, RUN, "x") for job in jobs}) == len(jobs)
    assert [job.seed for job in jobs] == [0] * 4 + [1] * 4
    assert all_jobs(PROFILE, [4, 4], [0], ["coa-lora", "coa-lora"]) == [Job("coa-lora", 4, 0)]
    two_ranks = all_jobs(PROFILE, [4, 8], [0], ["full-fine-tuning"])
    assert two_ranks == [Job("full-fine-tuning", None, 0)]
    with pytest.raises(ValueError, match="method='lora' is not known; allowed: coa-lora, coa-lo"):
        all_jobs(PROFILE, [4], [0], ["lora"])


@pytest.mark.parametrize("count", [1, 2])
def test_an_ablation_that_changes_nothing_is_left_out(count):
    left_out = set(methods_of("ablation")) - set(
        ablations_of(replace(PROFILE, configurations_per_step=count))
    )
    assert left_out == {f"{count}-configuration{'s' * (count - 1)}-a-step"}


@pytest.mark.parametrize("method", methods_of("main", "ablation"))
def test_every_method_runs_on_its_targets(method, setup, tmp_path):
    (job, *_) = all_jobs(PROFILE, [4], [0], [method])
    record = read_record(run_job(setup, job, tmp_path))
    budgets = [result.budget for result in record.results]
    kind = METHODS[method].trains_on
    assert len(record.twins) == (3 if kind == "set" else 0)
    if kind == "set":
        assert budgets == [3.0, 4.0, None, None]
        assert len(record.searches) == (METHODS[method].search is not None)
    else:
        assert budgets == [3.0 if kind == "budget" else None]
    assert record.job.rank == (None if method == "full-fine-tuning" else 4)
    assert "rank" not in record.parameters
    assert record.job.space == ("int" if method.endswith("integer-codes") else "nf")
    phases = {"preparation", "training", "search", "evaluation"}
    assert set(record.phases) - {"teacher"} == phases
    assert ("teacher" in record.phases) == (method.removeprefix("shared-lora-") == "distillation")
    assert record.stored > 0
    at_least = METHODS[method].plan.get("configurations_per_step", 1)  # one step
    for result in record.results:
        assert result.correctness.mean() == pytest.approx(result.accuracy)
        assert result.passes == max(setup.plan.steps, at_least)


def test_without_the_filter_a_search_drops_nothing(setup, tmp_path):
    record = read_record(run_job(setup, job_for("no-filter", 4, 0), tmp_path))
    for found in record.searches:
        assert found.kept == list(range(len(found.configurations)))


def test_a_method_trains_at_its_rate(setup):
    plan = plan_of(setup, METHODS["full-fine-tuning"])
    assert plan.learning_rate == pytest.approx(0.05 * PROFILE.learning_rate)
    assert plan_of(setup, METHODS["qlora"]).learning_rate == PROFILE.learning_rate


def test_bit_widths_are_counted(setup, tmp_path):
    stored = {
        name: read_record(run_job(setup, job_for(name, 4, 0), tmp_path)).stored
        for name in ("shared-lora", "lora-by-bit-width")
    }
    assert stored["lora-by-bit-width"] == 4 * stored["shared-lora"]


def test_the_pool_makes_what_is_missing_and_goes_on_after_a_failure(tmp_path, monkeypatch):
    jobs = [job_for("shared-lora", 4, 0), job_for("qlora", 4, 0, 3.0)]
    done = list(run_all(jobs[:1], RUN, tmp_path, 1))
    assert [job for job, _ in done] == jobs[:1]
    before = done[0][1].stat().st_mtime_ns
    broken = job_for("qlora", 4, 0, 1.0)  # no configuration has so few bits
    rest = run_all([broken, *jobs], RUN, tmp_path, 1)
    assert next(rest)[0] == jobs[1]
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed; first .*budget=1\.0"):
        next(rest)
    assert done[0][1].stat().st_mtime_ns == before


def test_a_model_with_options_has_no_search_and_its_own_arbitrary_configurations(setup, tmp_path):
    (job,) = all_jobs(PROFILE, [4], [0], ["options-learned-scale"])
    record = read_record(run_job(setup, job, tmp_path))
    assert [result.budget for result in record.results] == [3.0, 4.0, *[None] * UNIFORM_DRAWS]
    assert not record.searches
    assert not record.twins


def test_an_arm_is_evaluated_on_what_it_has_not_met(setup, tmp_path):
    (job,) = all_jobs(PROFILE, [4], [0], ["search-walk-all-kept"])
    record = read_record(run_job(setup, job, tmp_path))
    (search,) = record.searches
    assert search.kept == list(range(len(search.configurations)))

    def texts(configurations):
        return as_text(setup.space.rows(setup.space.to_flat(configurations)))

    first = [setup.allocated(budget) for budget in PROFILE.training_budgets]
    assert search.configurations[: len(first)] == texts(first)
    budgets = [result.budget for result in record.results]
    unseen = [each for each in UNSEEN_BUDGETS if each not in PROFILE.training_budgets]
    assert budgets == [*unseen, *[None] * PROFILE.arbitrary_configurations]
    # As if the search had scored the first target.
    met = texts([setup.allocated(UNSEEN_BUDGETS[0])])
    search = search.model_copy(update={"configurations": met})
    left = targets_of(record.model_copy(update={"searches": [search]}), setup)
    assert [budget for budget, _ in left] == budgets[1:]


def test_a_record_says_how_to_make_it_again(setup, tmp_path):
    for job in (job_for("lq-lora", 4, 0, 3.0), job_for("full-fine-tuning", 4, 0)):
        record = read_record(run_job(setup, job, tmp_path))
        assert record.job == job
        assert run_of(record) == replace(RUN, profile=replace(PROFILE, rank=job.rank or 0))
    other = record.model_copy(update={"parameters": record.parameters | {"epochs": "many"}})
    with pytest.raises(ValueError, match=r"seed0\.json: parameters\.epochs: .* got 'many'"):
        run_of(other)
    unknown = record.model_copy(update={"job": replace(job, method="other")})
    with pytest.raises(ValueError, match="method 'other' is not known"):
        run_of(unknown)


def test_every_stored_job_can_be_run_again():
    results = Path(__file__).parents[2] / "book" / "results"
    contents = (json.loads(path.read_text()) for path in results.rglob("*.json"))
    stored = [Job(**content["job"]) for content in contents if "job" in content]
    assert len(stored) == 695
    for job in stored:
        assert job_for(job.method, job.rank or 4, job.seed, job.budget) == job


@pytest.mark.parametrize(
    ("slug", "budget", "message"),
    [
        ("lora", None, "method='lora' is not known; allowed: coa-lora, coa-lora-as-published"),
        ("qlora", None, "a run of qlora needs a budget, got budget=None"),
        ("coa-lora", 3.0, "a run of coa-lora takes no budget, got budget=3.0"),
    ],
)
def test_a_job_that_cannot_be_is_refused(slug, budget, message):
    with pytest.raises(ValueError, match=message):
        job_for(slug, 4, 0, budget)


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
