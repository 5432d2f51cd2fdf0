import json
from pathlib import Path

import pytest

from coalora_lib.book import read_benchmarks

STORED = Path(__file__).parents[2] / "book" / "results" / "benchmarks"


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_stored_benchmarks_say_the_machine_and_nothing_of_its_owner(name):
    benchmarks = read_benchmarks(STORED / f"{name}.json")
    assert "torch" in str(benchmarks.machine)
    assert (benchmarks.machine.gpu is not None) == (name == "gpu")
    assert "node" not in json.loads((STORED / f"{name}.json").read_text())["machine_info"]


def test_a_timing_is_found_by_group_and_parameters():
    benchmarks = read_benchmarks(STORED / "cpu.json")
    timing = benchmarks.find("NF4 codes", way="bitsandbytes")
    assert 0 < timing.stats.min <= timing.stats.median
    with pytest.raises(KeyError, match="2 benchmarks of 'NF4 codes'"):
        benchmarks.find("NF4 codes")
    with pytest.raises(KeyError, match="0 benchmarks of 'sorting'"):
        benchmarks.find("sorting")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"benchmarks": []}')
    with pytest.raises(ValueError, match=r"other\.json is not a run of the benchmarks"):
        read_benchmarks(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError):
        read_benchmarks(tmp_path / "none.json")
