"""How a chapter begins."""

import re
from dataclasses import replace

import pytest
import torch

from coalora_lib.book import begin, numbers, table
from coalora_lib.experiments import PROFILES, Run
from coalora_lib.experiments.profiles import PUBLISHED

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
        ("rank", 0, "rank=0 is not known; allowed: integers from 1 to 1024"),
        ("rank", 4.0, "rank=4.0 is not known"),
    ],
)
def test_unknown_values_list_what_is_allowed(name, value, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        begin({**GOOD, "rank": 8, name: value}, "profile", "seed", "dataset", "rank")


def test_a_name_papermill_injected_and_the_chapter_has_not_is_refused():
    history = ["", "profile = 'quick'", "# Parameters\nseed = 1\nsede = 2\n"]
    with pytest.raises(ValueError, match="no parameter 'sede'; allowed: profile, seed, dataset"):
        begin({**GOOD, "In": history}, "profile", "seed", "dataset")


def test_beginning_seeds_torch():
    begin(GOOD, "profile", "seed")
    first = torch.rand(3)
    begin(GOOD, "profile", "seed")
    assert torch.equal(first, torch.rand(3))


def test_a_chapter_leaves_cores_to_others_and_takes_no_more_threads_than_it_is_given(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    for given, used in ((8, 4), (2, 2)):
        torch.set_num_threads(given)
        begin(GOOD, "profile", "seed")
        assert torch.get_num_threads() == used


@pytest.mark.parametrize("changed", [{"profile": "paper"}, {"seed": 3}, {"dataset": "sst2"}])
def test_a_run_knows_whether_its_parameters_are_the_published_ones(changed):
    names = ("profile", "seed", "dataset")
    assert begin(PUBLISHED, *names).published
    assert begin({"profile": "quick", "seed": 0}, "profile", "seed").published
    assert not begin(PUBLISHED | changed, *names).published


def test_a_run_of_another_rank_is_not_the_published_one():
    names = ("profile", "seed", "dataset", "rank")
    assert begin(PUBLISHED | {"rank": 8}, *names).published
    run = begin(PUBLISHED | {"rank": 4}, *names)
    assert run.profile == replace(PROFILES["quick"], rank=4)
    assert not run.published


@pytest.mark.parametrize(
    ("given", "found"), [("2.5, 3,4", [2.5, 3, 4]), ("2.5", [2.5]), (2.5, [2.5]), (3, [3])]
)
def test_numbers_of_a_parameter(given, found):
    assert numbers("budgets", given) == found


@pytest.mark.parametrize("given", ["", "2.5;3", "2.5,", "0", "-1", "nan", "inf", "[2.5, 3]"])
def test_what_is_no_list_of_numbers_is_named(given):
    message = rf"budgets={re.escape(repr(given))} is not known; allowed: numbers such as"
    with pytest.raises(ValueError, match=message):
        numbers("budgets", given)


def test_table_is_markdown():
    assert table(("a", "b"), [(1, "2")]).data == "| a | b |\n| :-- | --: |\n| 1 | 2 |"
