"""Every figure that chapter 10 prints of its records, from the raw files by another route."""

import re
from statistics import mean

import numpy as np
import pytest
import scipy.stats

from coalora_lib.experiments.methods import labels_of
from coalora_lib.experiments.setup import FITTED_EXAMPLES
from tests.book.printed import printed_by, prose_of, raw_records

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


def printed_number(printed, before):
    """The number that a cell prints after some words."""
    (found,) = {each for text in printed[1] for each in re.findall(before + r"([\d.]+)", text)}
    return float(found)


def says(*sentences):
    for sentence in sentences:
        assert sentence in prose_of("10_deployment"), sentence


def test_what_the_text_says_of_the_files_of_this_page(printed):
    says("has less than half of the phone's error", "The adapter takes 1.3 MB")
    _, devices = printed[0]["device"]
    assert float(devices["laptop.yaml"][2]) < 0.5
    assert round(printed_number(printed, "adapter.gguf: "), 1) == 1.3
    says(
        "This adds less than 0.001 to each distance. At 8.5 bits that is nearly the whole distance"
    )
    _, sizes = printed[0]["bits"]
    rounding = {bits: float(cells[3]) - float(cells[4]) for bits, cells in sizes.items()}
    assert max(rounding.values()) < 0.001
    assert rounding["8.5"] > 0.9 * float(sizes["8.5"][3])
    says(
        "In the first row, at the fewest bits, there is little difference",
        "In the other rows the adapter leaves about half",
        "From 4.2 to 5.5 bits, the adapter leaves about half",
    )
    _, alike = printed[0]["MB"]
    first, *others = (float(ours) / float(plain) for plain, ours in alike.values())
    assert first > 0.8
    assert all(0.4 < share < 0.55 for share in others)


def test_what_the_solutions_say(printed):
    says("`F16` adds 11 MB", "`Q4_0` saves 6 MB", "grows by a third only", "more than forty times")
    kinds = {}
    for kind in ("F16", "Q8_0", "Q4_0"):
        size = printed_number(printed, f"{kind}: (?=[\\d.]+ MB, 1 - cosine)")
        kinds[kind] = size, printed_number(printed, f"{kind}: [\\d.]+ MB, 1 - cosine ")
    assert round(kinds["F16"][0] - kinds["Q8_0"][0]) == 11
    assert round(kinds["Q8_0"][0] - kinds["Q4_0"][0]) == 6
    assert kinds["F16"][1] == kinds["Q8_0"][1]
    assert kinds["Q4_0"][1] / kinds["Q8_0"][1] == pytest.approx(4 / 3, abs=0.08)
    _, sizes = printed[0]["bits"]
    assert round(float(sizes["8.5"][1]) - float(sizes["3.8"][1])) == 6
    assert float(sizes["3.8"][3]) > 40 * float(sizes["8.5"][3])
    says("Each doubling of the rank takes about 30 % off the distance")
    losses = [printed_number(printed, f"rank {rank}: .*cosine ") for rank in (4, 8, 16)]
    assert losses[1] / losses[0] == pytest.approx(0.7, abs=0.04)
    assert losses[2] / losses[1] == pytest.approx(0.7, abs=0.04)


def test_what_the_records_of_the_text_were_made_with(files):
    says("1,500 steps over 50 of them", "with 4,096 sentences and no training")
    runs = [e for e in files if e["job"]["method"] in (SLUGS["Shared-LoRA"], SLUGS["CoA-LoRA"])]
    assert {each["results"][0]["steps"] for each in runs} == {1500}
    assert {
        len(each["parameters"]["training_budgets"]) + each["parameters"]["random_configurations"]
        for each in runs
    } == {50}
    assert FITTED_EXAMPLES == 4096
