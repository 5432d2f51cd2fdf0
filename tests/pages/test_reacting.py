"""The figures that react: controls move them, and what they say is what the records say.

The numbers are found anew from the records' JSON and by quantizing the model, not by what the page
was made with.
"""

import json
import re
from statistics import mean

import pytest

from coalora_lib.packaged import MINILM
from coalora_lib.quantization import BlockwiseChoice, quantize
from coalora_lib.tasks import load_classifier
from tests.pages.browser import SITE, SIZES, opened

PAGE = "book/adapt_it_yourself.html"
RESULTS = SITE.parents[1] / "book" / "results"
BUDGET = 2.75
#: In the table: the records' method of embeddings, and of SST-2.
METHODS = {
    "Shared-LoRA": ("recovery-shared-lora", "shared-lora"),
    "CoA-LoRA": ("recovery-coa-lora", "coa-lora"),
    "in order": ("recovery-in-order", "in-order-fitted"),
    "a run for each": ("recovery-alone", "lq-lora"),
}
#: What plotly drew in each part of a figure.
DRAWN = "(figure) => [...figure.querySelectorAll('.js-plotly-plot')].map((each) => each.data)"


@pytest.fixture
def page(browser):
    if not (SITE / PAGE).is_file():
        pytest.skip("the pages are not rendered; `make pages` does")
    with opened(browser, PAGE) as (tab, wrong):
        yield tab
    assert not wrong


def slide(tab, label, position):
    """Move a slider with the keyboard."""
    slider = tab.get_by_label(label, exact=True)
    slider.focus()
    tab.keyboard.press("Home")
    for _ in range(position):
        tab.keyboard.press("ArrowRight")


def drawn(tab, name):
    return tab.locator(f"#{name}").evaluate(DRAWN)


def table_of(tab):
    rows = tab.locator("#fig-adapt tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}


def records(folder, rank):
    for path in sorted((RESULTS / folder).glob("*.json")):
        record = json.loads(path.read_text())
        if record["job"]["rank"] == rank:
            yield record["job"], record["results"]


def task_scores(method):
    """Mean accuracy in percent and loss at the budget, over seeds."""
    found = [
        result
        for job, results in records("sst2", 4)
        for result in results
        if job["method"] == method and result["budget"] == BUDGET
    ]
    assert len(found) == 5
    return 100 * mean(each["accuracy"] for each in found), mean(each["loss"] for each in found)


def distances(asked):
    """By method: mean 1 - cosine where a run was trained for one configuration alone."""
    every = list(records("recovery", 8))
    alone = {
        job["seed"]: results[0]["bits"]
        for job, results in every
        if job["method"] == "recovery-alone" and job["budget"] == asked
    }
    found = {}
    for job, results in every:
        for result in results:
            near = abs(result["bits"] - alone.get(job["seed"], 0)) < 1e-6
            if near and result["budget"] is None:
                found.setdefault(job["method"], []).append(result["loss"])
    assert {len(found[method]) for method, _ in METHODS.values()} == {5}
    return {method: mean(losses) for method, losses in found.items()}


def test_the_slider_moves_the_figure_and_its_numbers_are_those_of_the_records(page):
    before = drawn(page, "fig-adapt")
    slide(page, "Budget, bits per parameter", 5)
    after = drawn(page, "fig-adapt")
    assert page.get_by_label("Budget").get_attribute("aria-valuetext") == f"{BUDGET}"
    assert after[0][0]["z"] != before[0][0]["z"]
    assert all(plot[-1]["x"] == [BUDGET, BUDGET] for plot in after[2:])
    said = page.locator("#fig-adapt .reacting-says").inner_text()
    assert said.endswith("of embeddings at 2.9 bits, of SST-2 at 2.75.")
    of_texts = distances(2.9)
    for name, (texts, task) in METHODS.items():
        distance, accuracy, loss = table_of(page)[name]
        assert float(distance) == pytest.approx(of_texts[texts], abs=5.1e-4)
        wanted, wanted_loss = task_scores(task)
        assert float(accuracy) == pytest.approx(wanted, abs=5.1e-3)
        assert float(loss) == pytest.approx(wanted_loss, abs=5.1e-4)


def test_the_choices_shown_have_the_size_and_the_error_that_are_said(page):
    slide(page, "Budget, bits per parameter", 5)
    said = page.locator("#fig-adapt .reacting-says").inner_text()
    size, error = re.match(r"2.75 bits: ([\d.]+) MB on disk, .* error ([\d.]+)\. ", said).groups()
    base, _ = load_classifier(MINILM)
    chosen = [words for row in drawn(page, "fig-adapt")[0][0]["text"] for words in row]
    layers = [
        module.weight.detach()
        for name, module in base.named_modules()
        if ".layer." in name and hasattr(module, "weight") and module.weight.ndim == 2
    ]
    stored = moved = whole = 0
    for weight, words in zip(layers, chosen, strict=True):
        b0, b1, b2, *blocks = words.split(", ")
        quantized = quantize(weight, BlockwiseChoice(int(b0), int(b1), b2, *map(int, blocks)))
        stored += quantized.nbytes
        moved += (quantized.dequantize() - weight).double().square().sum().item()
        whole += weight.double().square().sum().item()
    assert float(size) == pytest.approx(stored / 1e6, abs=5.1e-3)
    assert float(error) == pytest.approx((moved / whole) ** 0.5, abs=5.1e-5)


def test_a_device_that_a_budget_does_not_fit_says_so(page):
    slide(page, "Budget, bits per parameter", 5)
    page.get_by_label("A device that").select_option("has 4- and 8-bit codes only")
    said = page.locator("#fig-adapt .reacting-says").inner_text()
    assert said == "2.75 bits: not even the smallest configuration fits."
    cells = [cell for row in drawn(page, "fig-adapt")[0][0]["z"] for cell in row]
    assert set(cells) == {None}


def test_a_walk_goes_step_by_step_from_a_scored_configuration_to_what_was_proposed(page):
    slide(page, "Step", 0)
    assert "begins at a scored configuration" in page.locator("#fig-steps").inner_text()
    slide(page, "Step", 1)
    said = page.locator("#fig-steps .reacting-says").inner_text()
    assert re.match(r"Block \d, \w+: \w+ from \S+ to \S+\. [\d.]+ bits, predicted loss", said)
    slide(page, "Step", 30)
    said = page.locator("#fig-steps .reacting-says").inner_text()
    name = "search-walk-rank4-sst2-standard-seed1.json"
    record = json.loads((RESULTS / "search/sst2-rank4" / name).read_text())
    seen = record["searches"][-1]
    first = len(seen["losses"]) - seen["proposed"]
    assert said.endswith(f"measured {seen['losses'][first]:.4f}.")
    assert drawn(page, "fig-steps")[0][3]["x"] == [pytest.approx(seen["bits"][first], abs=1e-4)]


def test_menus_set_a_choice_and_its_front_is_named(page):
    for label, value in (
        ("weight bits", "3"),
        ("scale bits", "8"),
        ("scale dtype", "fp32"),
        ("block size", "32"),
        ("scale block size", "256"),
    ):
        page.get_by_label(label, exact=True).select_option(value)
    said = page.locator("#fig-choices .reacting-says").inner_text()
    bits = 3 + 8 / 32 + 32 / (32 * 256)
    assert said.startswith(f"{bits:.4f} bits per parameter, relative error ")
    traces = drawn(page, "fig-choices")[0]
    assert sum(len(trace["x"]) for trace in traces[:4]) == 432
    assert traces[-1]["x"] == [pytest.approx(bits, abs=1e-4)]


def test_the_pointer_is_told_what_a_choice_is(page):
    # The layer that plotly lays over the points takes the pointer.
    page.locator("#fig-choices .scatterlayer .point").first.hover(force=True)
    said = page.locator("#fig-choices .hovertext").first.text_content()
    assert re.search(r"\d, \d, \w+, \d+, \d+.* bits, error 0\.\d+", said), said


def test_plots_keep_their_height_when_the_window_changes_its_size(page):
    heights = "() => [...document.querySelectorAll('.js-plotly-plot')].map((e) => e.clientHeight)"
    before = page.evaluate(heights)
    assert min(before) >= 300
    for size in (SIZES["phone"], SIZES["desktop"]):
        page.set_viewport_size(size)
        page.wait_for_timeout(600)  # plotly waits for a tenth of a second, too
        assert page.evaluate(heights) == before


def test_without_scripts_the_pictures_stand(browser):
    if not (SITE / PAGE).is_file():
        pytest.skip("the pages are not rendered; `make pages` does")
    context = browser.new_context(java_script_enabled=False, viewport=SIZES["phone"])
    try:
        tab = context.new_page()
        tab.goto(f"{SITE.as_uri()}/{PAGE}")
        for name in ("fig-adapt", "fig-steps", "fig-choices"):
            assert tab.locator(f"#{name} img").is_visible()
            assert tab.locator(f"#{name} input").count() == 0
    finally:
        context.close()
