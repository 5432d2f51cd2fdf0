"""Every figure that chapter 10 prints of its records, from the raw files by another route."""

import re
from statistics import mean

import numpy as np
import pytest
import scipy.stats

from coalora_lib.experiments.methods import labels_of
from tests.book.printed import printed_by, raw_records

SLUGS = {label: slug for slug, label in labels_of("deployment").items()}
BUDGETS = [3.8, 4.2, 4.8, 5.5, 8.5]


@pytest.fixture(scope="module")
def files():
    return raw_records("deployment")


@pytest.fixture(scope="module")
def printed():
    return printed_by("10_deployment")


def losses(files, label, budget):
    """1 - cosine by seed, at an allocated budget, or with Q4_0 in all layers for None."""
    return {
        each["job"]["seed"]: result["loss"]
        for each in files
        if each["job"]["method"] == SLUGS[label]
        for result in each["results"]
        if result["budget"] == budget and (budget is not None or result["bits"] == 4.5)
    }


def three_digits(cell, value):
    """Whether a cell is a value, rounded to three significant digits."""
    digits = cell.replace(".", "").lstrip("0")
    return len(digits) == 3 and float(cell) == float(f"{value:.2e}") and "e" not in cell


def test_means(files, printed):
    head, rows = printed[0]["1 - cosine"]
    assert head[1:] == [*(f"{each} bits" for each in BUDGETS), "Q4_0"]
    assert {SLUGS[name] for name in rows} == {each["job"]["method"] for each in files}
    for name, cells in rows.items():
        for budget, cell in zip([*BUDGETS, None], cells, strict=True):
            found = losses(files, name, budget)
            assert len(found) == 5
            assert three_digits(cell, mean(found.values())), (name, budget)


def shares(files, first, second, budget):
    one, other = (losses(files, each, budget) for each in (first, second))
    return [one[seed] / other[seed] for seed in sorted(one)]


@pytest.mark.parametrize(
    ("title", "other"), [("no adapter's", "quantized"), ("Shared-LoRA's", "Shared-LoRA")]
)
def test_parts_of_the_distance(title, other, files, printed):
    head, rows = printed[0][f"part of {title}, bits"]
    assert [float(first) for first in rows] == BUDGETS
    assert len(head) == 4
    for first, cells in rows.items():
        for name, cell in zip(head[1:], cells, strict=True):
            values = shares(files, name, other, float(first))
            middle, scale = np.mean(values), scipy.stats.sem(values)
            low, high = scipy.stats.t.interval(0.95, len(values) - 1, middle, scale)
            assert cell == f"{middle:.2f} ({low:.2f} to {high:.2f})", (first, name)


def test_the_sentence_of_the_goal(files, printed):
    (text,) = (text for text in printed[1] if "trains nothing" in text)
    expected = []
    for other in ("quantized", "Shared-LoRA"):
        found = [mean(shares(files, "in order", other, each)) for each in BUDGETS]
        expected.append((f"{min(found):.2f}", f"{max(found):.2f}"))
    assert re.findall(r"([0-9.]+) to ([0-9.]+)", text) == expected
    values = shares(files, "calibrated, CoA-LoRA", "quantized", 8.5)
    high = scipy.stats.t.interval(0.95, 4, np.mean(values), scipy.stats.sem(values))[1]
    assert f"goes beyond it, to {high:.2f}." in text


@pytest.mark.parametrize("ours", ["in order", "in order, polished", "calibrated, CoA-LoRA"])
def test_ours_is_a_fifth_closer_at_every_size(ours, files):
    for budget in [*BUDGETS, None]:
        assert mean(shares(files, ours, "quantized", budget)) < 0.8
        assert max(shares(files, ours, "Shared-LoRA", budget)) < 1


def test_an_adapter_for_one_type_is_best_there_alone(files):
    names = [label for label in SLUGS if label != "Q4_0 alone"]
    alone = mean(losses(files, "Q4_0 alone", None).values())
    assert alone < min(mean(losses(files, name, None).values()) for name in names)
    for budget in BUDGETS:
        assert min(shares(files, "Q4_0 alone", "quantized", budget)) > 1
