from dataclasses import replace

import pytest
import torch

from coalora_lib.experiments import PROFILES, Run, begin, prepare, provenance, table

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
    bits = [setup.space.mean_bits(each, setup.shapes) for each in setup.training_set()]
    assert len(bits) == 9
    assert bits[0] == pytest.approx(2.25, abs=0.01)


def test_provenance_says_synthetic(setup):
    line = provenance(setup.run, setup.splits)
    assert "synthetic" in line
    assert "53aa51172d14" in line


def test_table_is_markdown():
    assert table(("a", "b"), [(1, "2")]).data == "| a | b |\n| :-- | --: |\n| 1 | 2 |"
