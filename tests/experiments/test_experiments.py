import os
from dataclasses import replace

import pytest
import torch

from coalora_lib.configuration import mean_bits
from coalora_lib.experiments import PROFILES, Run, begin, prepare, provenance, table
from coalora_lib.experiments.chapter import PUBLISHED
from coalora_lib.experiments.records import new_record, read_record, result_of, write_record
from coalora_lib.experiments.tables import with_interval
from coalora_lib.training import Evaluation

GOOD = {"profile": "quick", "seed": 0, "dataset": "embedded"}


def test_good_parameters_begin_a_run():
    run = begin(GOOD, "profile", "seed", "dataset")
    assert run == Run(PROFILES["quick"], 0, "embedded")
    assert begin({"profile": "paper", "seed": 3}, "profile", "seed").profile.rank == 64


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("profile", "quik", "profile='quik' is not known; allowed: quick, standard, paper"),
        ("dataset", "sst", "dataset='sst' is not known; allowed: embedded, sst2, qnli"),
        ("seed", -1, "seed=-1 is not known; allowed: integers"),
        ("seed", "0", "seed='0' is not known"),
        ("seed", True, "seed=True is not known"),
        ("profile", ["quick"], "profile="),
    ],
)
def test_unknown_values_list_what_is_allowed(name, value, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        begin({**GOOD, name: value}, "profile", "seed", "dataset")


def test_a_name_papermill_injected_and_the_chapter_has_not_is_refused():
    history = ["", "profile = 'quick'", "# Parameters\nseed = 1\nsede = 2\n"]
    with pytest.raises(ValueError, match="no parameter 'sede'; allowed: profile, seed, dataset"):
        begin({**GOOD, "In": history}, "profile", "seed", "dataset")


@pytest.mark.parametrize("changed", [{"profile": "paper"}, {"seed": 3}, {"dataset": "sst2"}])
def test_a_run_knows_whether_its_parameters_are_the_published_ones(changed):
    names = ("profile", "seed", "dataset")
    assert begin(PUBLISHED, *names).published
    assert begin({"profile": "quick", "seed": 0}, "profile", "seed").published
    assert not begin(PUBLISHED | changed, *names).published


def test_beginning_seeds_torch():
    begin(GOOD, "profile", "seed")
    first = torch.rand(3)
    begin(GOOD, "profile", "seed")
    assert torch.equal(first, torch.rand(3))


@pytest.fixture(scope="module")
def setup():
    profile = replace(PROFILES["quick"], train_examples=64, validation_examples=16, error_pieces=1)
    return prepare(Run(profile, 0))


def test_setup_holds_the_scoring_examples_out_of_training(setup):
    assert (len(setup.train), len(setup.scoring), len(setup.validation)) == (64, 64, 16)
    texts = {tuple(example["input_ids"].tolist()) for example in setup.train}
    assert not texts & {tuple(example["input_ids"].tolist()) for example in setup.scoring}
    assert setup.plan.steps == 4


def test_setup_makes_the_same_model_and_set_each_time(setup):
    first, again = (setup.new_model().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert setup.training_set() == setup.training_set()
    bits = [mean_bits(configuration, setup.sizes) for configuration in setup.training_set()]
    assert len(bits) == 9
    assert bits[0] == pytest.approx(2.25, abs=0.01)


def test_records_are_written_whole_and_read_back(setup, tmp_path, monkeypatch):
    record = new_record("trial", setup)
    right = torch.ones(16, dtype=torch.bool)
    evaluation = Evaluation(accuracy=1.0, loss=0.1, correct=right)
    record.results.append(result_of(setup.plan, "QLoRA", 3.0, evaluation, 2.99, 1.234))
    path = write_record(record, tmp_path / "new")
    assert path.name == "trial-embedded-quick-seed0.json"
    assert read_record(path) == record
    assert record.synthetic
    assert record.results[0].passes == setup.plan.steps

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_record(record, path.parent)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_is_no_record_is_refused_by_name(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"experiment": 3}')
    with pytest.raises(ValueError, match=r"x\.json is not a record"):
        read_record(path)


def test_provenance_says_synthetic(setup):
    line = provenance(setup.run, setup.splits)
    assert "synthetic" in line
    assert "53aa51172d14" in line


def test_table_is_markdown():
    assert table(("a", "b"), [(1, "2")]).data == "| a | b |\n| :-- | --: |\n| 1 | 2 |"


def test_an_interval_has_its_signs_and_holds_together():
    text = with_interval((0.126, -1.0, 2.5))
    assert text.split() == ["+0.13", "(-1.00", "to", "+2.50)"]
    assert text.split(" ") == ["+0.13", "(-1.00\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}+2.50)"]
