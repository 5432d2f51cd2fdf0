import json
from dataclasses import replace
from pathlib import Path

import pytest

from coalora_lib.experiments.methods import METHODS, ablations_of, methods_of
from coalora_lib.experiments.protocols import UNIFORM_DRAWS, UNSEEN_BUDGETS
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
from tests.conftest import SMALL_PROFILE


def test_jobs_are_one_a_budget_where_the_method_needs_it(small_run):
    jobs = all_jobs(SMALL_PROFILE, [4], [0, 1], ["coa-lora", "lq-lora", "full-fine-tuning"])
    assert len(jobs) == 2 * (1 + 2 + 1)
    assert len({path_of(job, small_run, "x") for job in jobs}) == len(jobs)
    assert [job.seed for job in jobs] == [0] * 4 + [1] * 4
    assert all_jobs(SMALL_PROFILE, [4, 4], [0], ["coa-lora", "coa-lora"]) == [Job("coa-lora", 4, 0)]
    two_ranks = all_jobs(SMALL_PROFILE, [4, 8], [0], ["full-fine-tuning"])
    assert two_ranks == [Job("full-fine-tuning", None, 0)]
    with pytest.raises(ValueError, match="method='lora' is not known; allowed: coa-lora, coa-lo"):
        all_jobs(SMALL_PROFILE, [4], [0], ["lora"])


@pytest.mark.parametrize("count", [1, 2])
def test_an_ablation_that_changes_nothing_is_left_out(count):
    left_out = set(methods_of("ablation")) - set(
        ablations_of(replace(SMALL_PROFILE, configurations_per_step=count))
    )
    assert left_out == {f"{count}-configuration{'s' * (count - 1)}-a-step"}


@pytest.mark.parametrize("method", methods_of("main", "ablation"))
def test_every_method_runs_on_its_targets(method, small_setup, tmp_path):
    (job, *_) = all_jobs(SMALL_PROFILE, [4], [0], [method])
    record = read_record(run_job(small_setup, job, tmp_path))
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
        assert result.passes == max(small_setup.plan.steps, at_least)


def test_without_the_filter_a_search_drops_nothing(small_setup, tmp_path):
    record = read_record(run_job(small_setup, job_for("no-filter", 4, 0), tmp_path))
    for found in record.searches:
        assert found.kept == list(range(len(found.configurations)))


def test_a_method_trains_at_its_rate(small_setup):
    plan = plan_of(small_setup, METHODS["full-fine-tuning"])
    assert plan.learning_rate == pytest.approx(0.05 * SMALL_PROFILE.learning_rate)
    assert plan_of(small_setup, METHODS["qlora"]).learning_rate == SMALL_PROFILE.learning_rate


def test_bit_widths_are_counted(small_setup, tmp_path):
    stored = {
        name: read_record(run_job(small_setup, job_for(name, 4, 0), tmp_path)).stored
        for name in ("shared-lora", "lora-by-bit-width")
    }
    assert stored["lora-by-bit-width"] == 4 * stored["shared-lora"]


def test_a_model_with_options_has_no_search_and_its_own_arbitrary_configurations(
    small_setup, tmp_path
):
    (job,) = all_jobs(SMALL_PROFILE, [4], [0], ["options-learned-scale"])
    record = read_record(run_job(small_setup, job, tmp_path))
    assert [result.budget for result in record.results] == [3.0, 4.0, *[None] * UNIFORM_DRAWS]
    assert not record.searches
    assert not record.twins


def test_an_arm_is_evaluated_on_what_it_has_not_met(small_setup, tmp_path):
    (job,) = all_jobs(SMALL_PROFILE, [4], [0], ["search-walk-all-kept"])
    record = read_record(run_job(small_setup, job, tmp_path))
    (search,) = record.searches
    assert search.kept == list(range(len(search.configurations)))

    def texts(configurations):
        return as_text(small_setup.space.rows(small_setup.space.to_flat(configurations)))

    first = [small_setup.allocated(budget) for budget in SMALL_PROFILE.training_budgets]
    assert search.configurations[: len(first)] == texts(first)
    budgets = [result.budget for result in record.results]
    unseen = [each for each in UNSEEN_BUDGETS if each not in SMALL_PROFILE.training_budgets]
    assert budgets == [*unseen, *[None] * SMALL_PROFILE.arbitrary_configurations]
    # As if the search had scored the first target.
    met = texts([small_setup.allocated(UNSEEN_BUDGETS[0])])
    search = search.model_copy(update={"configurations": met})
    left = targets_of(record.model_copy(update={"searches": [search]}), small_setup)
    assert [budget for budget, _ in left] == budgets[1:]


def test_a_record_says_how_to_make_it_again(small_run, small_setup, tmp_path):
    for job in (job_for("lq-lora", 4, 0, 3.0), job_for("full-fine-tuning", 4, 0)):
        record = read_record(run_job(small_setup, job, tmp_path))
        assert record.job == job
        assert run_of(record) == replace(
            small_run, profile=replace(small_run.profile, rank=job.rank or 0)
        )
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
    assert len(stored) == 1129
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
