"""Tables of one mean per method, against the stored files."""

import json
from pathlib import Path
from statistics import mean

import pytest

from coalora_lib.experiments.methods import labels_of
from coalora_lib.records import accuracy_table, common_accuracies, frame, read_records
from tests.records.test_store import Job, record, result

STORED = Path(__file__).parents[2] / "book" / "results"


def test_the_table_is_the_records_means():
    columns, rows = accuracy_table(read_records(STORED / "options"), labels_of("option"))
    assert [row[0] for row in rows] == list(labels_of("option").values())
    found = dict(zip(columns, next(row for row in rows if row[0] == "CoA-LoRA"), strict=True))
    values = [
        each["accuracy"]
        for path in (STORED / "options").glob("options-coa-lora-*.json")
        for each in json.loads(path.read_text())["results"]
        if each["budget"] == 3.0
    ]
    assert len(values) == 3
    assert found["3 bits"].startswith(f"{100 * sum(values) / 3:.1f} (")


def test_what_was_not_measured_is_nan_in_the_frame():
    embedding = result(accuracy=None, correct=None, neighbours=0.5)
    rows = frame([record(results=[result(), embedding])])
    assert rows["accuracy"].isna().tolist() == [False, True]
    assert rows["neighbours"].isna().tolist() == [True, False]
    assert rows["agreement"].isna().all()
    assert frame([record(results=[embedding])])["accuracy"].dtype == float
    assert rows["agreement"].dtype == float


def test_one_seed_has_no_spread():
    results = [result(3.0, accuracy=0.5), result(None, accuracy=1), result(None, accuracy=0)]
    columns, rows = accuracy_table([record(results=results)], {"coa-lora": "ours"})
    assert columns == ("run", "3 bits", "arbitrary")
    assert rows == [("ours", "50.0", "50.0")]
    unquantized = record(job=Job("full", None, 0), results=[result(None, bits=32, accuracy=0.9)])
    columns, rows = accuracy_table([record(), unquantized], {"full": "full", "coa-lora": "ours"})
    assert columns[-1] == "unquantized"
    assert rows == [("full", "-", "-", "90.0"), ("ours", "66.7", "66.7", "-")]


def test_methods_are_compared_on_what_all_of_a_seed_were_evaluated_on():
    allocated, first, second = result(3.0), result(None, bits=3), result(None, bits=4, accuracy=0.1)
    runs = [
        record(results=[allocated, first, second]),
        record(job=Job("other", 4, 0), results=[allocated, first]),
        record(job=Job("coa-lora", 4, 1), results=[allocated, second]),
    ]
    found = common_accuracies(runs, {"coa-lora": "ours", "other": "theirs"})
    two_thirds = pytest.approx(200 / 3)
    assert found["ours"][0] == found["theirs"][0] == (two_thirds, two_thirds)
    assert found["ours"][1] == (two_thirds, pytest.approx(10))


def test_arms_of_the_stored_searches_are_the_files():
    found = common_accuracies(read_records(STORED / "search" / "sst2-rank4"), labels_of("search"))
    assert {arm: len(seeds) for arm, seeds in found.items()} == dict.fromkeys(
        ["frozen", "nsga2", "random", "random, all kept", "walk", "walk, all kept"], 5
    )
    paths = (STORED / "search" / "sst2-rank4").glob("*-seed0.json")
    results = {path.name: json.loads(path.read_text())["results"] for path in paths}
    shared = set.intersection(
        *({(r["budget"], r["bits"]) for r in each} for each in results.values())
    )
    walk = [
        r["accuracy"]
        for r in results["search-walk-rank4-sst2-standard-seed0.json"]
        if r["budget"] is None and (None, r["bits"]) in shared
    ]
    assert found["walk"][0][1] == pytest.approx(100 * mean(walk))
