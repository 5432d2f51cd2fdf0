"""The tables against the raw JSON files, read by another route."""

import base64
import json
import re
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coalora_lib.experiments import prepare
from coalora_lib.experiments.methods import labels_of
from coalora_lib.experiments.runner import job_for, run_job
from coalora_lib.records import Evidence, read_records, wall_seconds
from coalora_lib.records.evidence import MOST_BITS, dominated_share
from coalora_lib.search import hypervolume
from tests.conftest import SMALL_PROFILE

LABELS = labels_of("main", "ablation")
JOBS = [
    *(job_for(slug, 4, seed) for slug in ("coa-lora", "shared-lora") for seed in (0, 1)),
    *(job_for("lq-lora", 4, 0, budget) for budget in SMALL_PROFILE.budgets),
    job_for("full-fine-tuning", 4, 0),
]


@pytest.fixture(scope="module")
def folder(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    setups = {seed: prepare(replace(small_run, seed=seed)) for seed in (0, 1)}
    for job in JOBS:
        run_job(setups[job.seed], job, folder)
    return folder


@pytest.fixture
def evidence(folder):
    return Evidence(read_records(folder), LABELS)


def raw(folder, method):
    """By seed, the results as they stand in the files."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if LABELS[content["job"]["method"]] == method:
            found.setdefault(content["job"]["seed"], []).extend(content["results"])
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


def test_points_are_those_of_the_files(evidence, folder):
    found = evidence.points("CoA-LoRA", 4, [4.0, 3.0])
    files = raw(folder, "CoA-LoRA")
    for seed, rows in zip(sorted(files), found, strict=True):
        by_budget = {r["budget"]: [r["bits"], 100 * r["accuracy"]] for r in files[seed]}
        assert rows.tolist() == [by_budget[4.0], by_budget[3.0]]
    arbitrary = evidence.points("CoA-LoRA", 4, None)
    assert arbitrary.shape == (2, SMALL_PROFILE.arbitrary_configurations, 2)


def test_runs_beside_each_other_count_once_and_a_pause_does_not(folder):
    record = read_records(folder)[0]
    runs = [
        record.model_copy(update={"created": created, "phases": {"training": seconds}})
        for created, seconds in (
            ("2026-01-01T00:00:10+00:00", 100.0),
            ("2026-01-01T00:00:00+00:00", 50.0),
            ("2026-01-01T01:00:20+01:00", 70.0),
            ("2026-01-01T00:10:00+00:00", 5.0),
        )
    ]
    assert wall_seconds(runs) == 115.0


def test_unseen_against_seen_is_the_difference_of_the_files(evidence, folder):
    pairs = []
    for path in sorted(folder.glob("coa-lora-rank4*.json")):
        pairs += json.loads(path.read_text())["twins"]
    seen, unseen = ([pair[side]["accuracy"] for pair in pairs] for side in ("seen", "unseen"))
    lead = evidence.unseen("CoA-LoRA", 4)
    assert lead.mean == pytest.approx(100 * (np.mean(unseen) - np.mean(seen)))
    assert lead.low <= lead.mean <= lead.high
    found = evidence.twins("CoA-LoRA", 4)
    assert found.shape == (len(pairs), 2, 2)
    assert found[:, 0, 1].tolist() == pytest.approx([100 * a for a in seen])
    with pytest.raises(ValueError, match="LQ-LoRA, rank 4, seed 0: no seen and unseen twins"):
        evidence.unseen("LQ-LoRA", 4)


def test_twins_are_alike_and_in_no_training_set(small_setup):
    setup = small_setup
    known = setup.training_set()
    for seen, unseen in setup.twins():
        assert seen in known
        assert unseen not in known
        bits = [setup.space.mean_bits(each, setup.shapes) for each in (seen, unseen)]
        assert abs(bits[0] - bits[1]) < 1


def test_a_lead_is_the_difference_of_the_files_and_changes_sign(evidence, folder):
    means = {
        name: np.mean(
            [r["accuracy"] for rs in raw(folder, name).values() for r in rs if r["budget"] is None]
        )
        for name in ("CoA-LoRA", "Shared-LoRA")
    }
    lead = evidence.lead("CoA-LoRA", "Shared-LoRA", 4, None)
    assert lead.mean == pytest.approx(100 * (means["CoA-LoRA"] - means["Shared-LoRA"]))
    assert lead.low <= lead.mean <= lead.high
    assert evidence.lead("Shared-LoRA", "CoA-LoRA", 4, None).mean == pytest.approx(-lead.mean)


def test_a_lead_over_ranks_is_that_of_the_means_of_each_seeds_runs(folder):
    records = read_records(folder)
    # Rank 8's CoA-LoRA is rank 4's Shared-LoRA and the other way around: the means are equal.
    swapped = {"coa-lora": "shared-lora", "shared-lora": "coa-lora"}
    of_rank_4 = [record for record in records if record.job.method in swapped]
    of_rank_8 = []
    for record in of_rank_4:
        job = replace(record.job, method=swapped[record.job.method], rank=8)
        of_rank_8.append(record.model_copy(update={"job": job}))
    evidence = Evidence([*of_rank_4, *of_rank_8], LABELS)
    assert evidence.ranks == [4, 8]
    one = evidence.lead("CoA-LoRA", "Shared-LoRA", [4], None)
    assert one == evidence.lead("CoA-LoRA", "Shared-LoRA", 4, None)
    both = evidence.lead("CoA-LoRA", "Shared-LoRA", [4, 8], None)
    assert astuple(both) == pytest.approx((0.0, 0.0, 0.0))


def test_hypervolume_is_the_area_of_the_files_points(evidence, folder):
    (results,) = raw(folder, "LQ-LoRA").values()
    (b1, e1), (b2, e2) = sorted((r["bits"], 1 - r["accuracy"]) for r in results)
    area = (0.5 - e1) * (6.5 - b1) if e1 < 0.5 else 0
    if e2 < min(e1, 0.5):
        area += (min(e1, 0.5) - e2) * (6.5 - b2)
    found = evidence.hypervolume("LQ-LoRA", 4, SMALL_PROFILE.budgets)
    assert found == pytest.approx(area / (0.5 * 4.5))


def test_the_dominated_share_is_the_hypervolume_of_the_search():
    generator = np.random.default_rng(0)
    errors = generator.uniform(0.0, 0.7, (50, 6))
    bits = generator.uniform(2.0, 7.0, 6)  # some beyond the reference, in both columns
    for guess in (0.5, 2 / 3):
        for row, share in zip(errors, dominated_share(errors, bits, guess), strict=True):
            points = torch.tensor(np.stack([row, bits], axis=1))
            volume = hypervolume(points, (guess, MOST_BITS))
            assert share == pytest.approx(volume / (guess * 4.5))


def test_guessing_among_more_classes_is_a_larger_error(folder):
    records = read_records(folder)
    two, three = (Evidence(records, LABELS, classes) for classes in (2, 3))
    found = [each.hypervolume("LQ-LoRA", 4, SMALL_PROFILE.budgets) for each in (two, three)]
    assert found[0] < found[1]
    with pytest.raises(ValueError, match="method 'coa-lora' has no label"):
        Evidence(records, {})


def test_a_lead_in_hypervolume_is_the_difference_of_two_and_changes_sign(evidence):
    pair = ("CoA-LoRA", "Shared-LoRA")
    first, second = (evidence.hypervolume(name, 4, SMALL_PROFILE.budgets) for name in pair)
    lead = evidence.hypervolume_lead(*pair, 4, SMALL_PROFILE.budgets)
    assert lead.mean == pytest.approx(first - second)
    assert lead.low <= lead.mean <= lead.high
    assert lead.low < lead.high
    reverse = evidence.hypervolume_lead(*pair[::-1], 4, SMALL_PROFILE.budgets)
    assert astuple(reverse) == pytest.approx((-lead.mean, -lead.high, -lead.low))
    same = evidence.hypervolume_lead("CoA-LoRA", "CoA-LoRA", 4, SMALL_PROFILE.budgets)
    assert astuple(same) == (0.0, 0.0, 0.0)


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


PUBLISHED = Path(__file__).parents[2] / "book" / "results" / "sst2"


def published(start):
    """(seeds, configurations, examples) correctness of records whose name starts so."""
    found = []
    for path in sorted(PUBLISHED.glob(f"{start}-sst2-standard-seed*.json")):
        rows = []
        for result in json.loads(path.read_text())["results"]:
            packed = np.frombuffer(base64.b64decode(result["correct"]), dtype=np.uint8)
            bits = [byte >> (7 - place) & 1 for byte in packed for place in range(8)]
            rows.append((result["budget"], bits[: result["examples"]]))
        found.append(rows)
    return found


def chapter_rows():
    """The cells of all tables of chapter 6, as they were published, by their first cell."""
    notebook = json.loads((PUBLISHED.parents[1] / "06_sst2.ipynb").read_text())
    rows = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            for line in output.get("data", {}).get("text/markdown", ()):
                first, *cells = (part.strip() for part in line.strip().strip("|").split("|"))
                rows.setdefault(first, []).append(cells)
    return rows


def arbitrary_mean(start):
    return 100 * np.mean(
        [right for rows in published(start) for budget, right in rows if budget is None]
    )


def test_chapter_5_prints_the_accuracies_of_the_published_records():
    printed = chapter_rows()["CoA-LoRA"]
    (entry,) = (cells for cells in printed if re.match(r"\d+\.\d+ \(", cells[0]))
    for rank, cell in zip((4, 8, 16), entry, strict=True):
        assert cell.split()[0] == f"{arbitrary_mean(f'coa-lora-rank{rank}'):.2f}"


def test_chapter_5_prints_the_leads_of_the_published_records():
    leads = [
        arbitrary_mean(f"coa-lora-rank{rank}") - arbitrary_mean(f"shared-lora-rank{rank}")
        for rank in (4, 8, 16)
    ]
    (entry,) = chapter_rows()["Shared-LoRA, arbitrary"]
    for lead, cell in zip([*leads, np.mean(leads)], entry, strict=True):
        assert cell.split()[0] == f"{lead:+.2f}"
    budgets, leads = (2.25, 2.5, 2.75, 3, 3.25, 3.5, 4), []
    for rank in (4, 8, 16):
        each = np.mean(
            [
                right
                for budget in budgets
                for rows in published(f"lq-lora-rank{rank}-{budget:g}bits")
                for _, right in rows
            ]
        )
        ours = np.mean(
            [
                right
                for rows in published(f"coa-lora-rank{rank}")
                for b, right in rows
                if b in budgets
            ]
        )
        leads.append(100 * (ours - each))
    (entry,) = chapter_rows()["LQ-LoRA, allocated"]
    for lead, cell in zip([*leads, np.mean(leads)], entry, strict=True):
        assert cell.split()[0] == f"{lead:+.2f}"


def test_chapter_5_prints_the_time_of_the_published_records():
    spent = {
        name: [
            sum(
                sum(phases.values()) - phases["evaluation"]
                for path in PUBLISHED.glob(f"{name}-rank{rank}-*seed*.json")
                for phases in [json.loads(path.read_text())["phases"]]
                if "bits" in path.name or name == "coa-lora"
            )
            for rank in (4, 8, 16)
        ]
        for name in ("coa-lora", "lq-lora")
    }
    (entry,) = chapter_rows()["nine LQ-LoRA runs, in CoA-LoRA runs"]
    for cell, one, many in zip(entry[:4], *([*s, sum(s)] for s in spent.values()), strict=True):
        assert cell == f"{many / one:.1f}"
