from dataclasses import replace
from pathlib import Path

import pytest

from coalora_lib.experiments import PROFILES, Run, prepare
from coalora_lib.experiments.options import ARBITRARY, compare_options, option_table, options
from coalora_lib.experiments.records import read_record, write_record
from tests.conftest import SMALLEST

STORED = Path(__file__).parents[2] / "book" / "results" / "options"


def test_every_option_runs_and_is_recorded(tmp_path):
    profile = replace(
        PROFILES["quick"],
        rank=4,
        **SMALLEST,
        budgets=(3.0,),
    )
    compare_options(prepare(Run(profile, 0)), tmp_path)
    (path,) = tmp_path.iterdir()
    record = read_record(path)
    assert len(record.results) == len(options(4)) * (1 + ARBITRARY)
    assert {result.method for result in record.results} == set(options(4))
    columns, rows = option_table(tmp_path)
    assert columns == ("run", "3 bits", "arbitrary")
    assert [row[0] for row in rows] == list(options(4))


def test_the_table_is_the_records_means():
    columns, rows = option_table(STORED)
    records = [read_record(path) for path in STORED.glob("*.json")]
    found = dict(zip(columns, next(row for row in rows if row[0] == "CoA-LoRA"), strict=True))
    values = [
        r.accuracy
        for record in records
        for r in record.results
        if r.method == "CoA-LoRA" and r.budget == 3.0
    ]
    assert len(values) == 3
    assert found["3 bits"].startswith(f"{100 * sum(values) / 3:.1f} (")
    assert len({record.seed for record in records}) == 3


def test_records_on_different_ground_are_not_mixed(tmp_path):
    with pytest.raises(ValueError, match="holds no records"):
        option_table(tmp_path)
    record = read_record(sorted(STORED.glob("*.json"))[0])
    write_record(record, tmp_path)
    write_record(record.model_copy(update={"seed": 9, "data_checksum": "other"}), tmp_path)
    with pytest.raises(ValueError, match="differ in data"):
        option_table(tmp_path)
