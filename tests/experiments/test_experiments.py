from dataclasses import replace

import pytest
import torch

from coalora_lib.book import provenance
from coalora_lib.experiments import PROFILES, Run, prepare


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
