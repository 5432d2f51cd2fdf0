"""The tables against the raw JSON files, read by another route."""

import json
from dataclasses import replace

import numpy as np
import pytest

from coalora_lib.experiments import prepare
from coalora_lib.experiments.comparison import Job, job_of, run_job
from coalora_lib.experiments.evidence import Evidence
from coalora_lib.experiments.records import read_records
from tests.experiments.test_comparison import PROFILE, RUN

JOBS = [
    *(Job(name, 4, seed) for name in ("CoA-LoRA", "Shared-LoRA") for seed in (0, 1)),
    *(Job("LQ-LoRA", 4, 0, budget) for budget in PROFILE.budgets),
    Job("full fine-tuning", 4, 0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    setups = {seed: prepare(replace(RUN, seed=seed)) for seed in (0, 1)}
    for job in JOBS:
        run_job(setups[job.seed], job, folder)
    return folder


@pytest.fixture
def evidence(folder):
    return Evidence(read_records(folder, varying=["rank"]))


def raw(folder, method):
    """By seed, the results as they stand in the files."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if content["results"][0]["method"] == method:
            found.setdefault(content["seed"], []).extend(content["results"])
    return found


def test_methods_ranks_and_seeds_are_the_files(evidence):
    assert evidence.ranks == [4]
    assert evidence.methods(4) == ["CoA-LoRA", "Shared-LoRA", "LQ-LoRA", "full fine-tuning"]
    assert evidence.seeds("CoA-LoRA", 4) == [0, 1]
    assert evidence.seeds("full fine-tuning", 16) == [0]


def test_accuracies_are_those_of_the_files(evidence, folder):
    for budgets in ([3.0], None, [3.0, 4.0]):
        by_seed = [
            np.mean([r["accuracy"] for r in results if r["budget"] in (budgets or [None])])
            for results in raw(folder, "CoA-LoRA").values()
        ]
        middle, spread = evidence.accuracy("CoA-LoRA", 4, budgets)
        assert middle == pytest.approx(100 * np.mean(by_seed))
        assert spread == pytest.approx(100 * np.std(by_seed, ddof=1))


def test_a_lead_is_the_difference_of_the_files_and_changes_sign(evidence, folder):
    means = {
        name: np.mean(
            [r["accuracy"] for rs in raw(folder, name).values() for r in rs if r["budget"] is None]
        )
        for name in ("CoA-LoRA", "Shared-LoRA")
    }
    lead, low, high = evidence.lead("CoA-LoRA", "Shared-LoRA", 4, None)
    assert lead == pytest.approx(100 * (means["CoA-LoRA"] - means["Shared-LoRA"]))
    assert low <= lead <= high
    assert evidence.lead("Shared-LoRA", "CoA-LoRA", 4, None)[0] == pytest.approx(-lead)


def test_hypervolume_is_the_area_of_the_files_points(evidence, folder):
    (results,) = raw(folder, "LQ-LoRA").values()
    (b1, e1), (b2, e2) = sorted((r["bits"], 1 - r["accuracy"]) for r in results)
    area = (0.5 - e1) * (6.5 - b1) if e1 < 0.5 else 0
    if e2 < min(e1, 0.5):
        area += (min(e1, 0.5) - e2) * (6.5 - b2)
    found = evidence.hypervolume("LQ-LoRA", 4, PROFILE.budgets)
    assert found == pytest.approx(area / (0.5 * 4.5))


def test_a_run_for_each_budget_costs_them_all(evidence, folder):
    runs, seconds, stored = evidence.cost("LQ-LoRA", 4)
    files = [json.loads(path.read_text()) for path in folder.glob("lq-lora*.json")]
    assert runs == len(files) == 2
    assert stored == sum(file["stored"] for file in files)
    spent = sum(file["phases"][p] for file in files for p in ("preparation", "training", "search"))
    assert seconds == pytest.approx(spent)


def test_a_budget_without_a_run_is_named(evidence):
    with pytest.raises(ValueError, match=r"LQ-LoRA, rank 4, seed 0: no result at 2\.5 bits"):
        evidence.correctness("LQ-LoRA", 4, [2.5, 3.0])


def test_a_record_says_how_to_make_it_again(folder):
    for record in read_records(folder, varying=["rank"]):
        job, run = job_of(record)
        assert job in JOBS
        assert run == replace(RUN, seed=job.seed, profile=replace(PROFILE, rank=4))
