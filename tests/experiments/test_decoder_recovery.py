"""Distributions of the next token of a quantized decoder brought back, on a tiny LLaMA."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from coalora_lib.batch.grid import Grid
from coalora_lib.batch.jobs import MethodRun
from coalora_lib.book import begin
from coalora_lib.cli import app
from coalora_lib.experiments import PROFILES, Run, prepare
from coalora_lib.experiments import setup as preparation
from coalora_lib.experiments.methods import METHODS, compared_for, methods_of
from coalora_lib.experiments.protocols import RECOVERY
from coalora_lib.experiments.runner import all_jobs, job_for, make_record, run_job, run_of
from coalora_lib.kinds import NextToken
from coalora_lib.records import read_record
from coalora_lib.tasks.embedded import review_phrases
from coalora_lib.training import evaluate
from tests.conftest import SMALL_PROFILE, write_c4

pytestmark = pytest.mark.usefixtures("few_steps")

PHRASES = [text for text, _ in review_phrases(400, 0)]
NAME = "recovery-llama-2-7b"
#: Sizes of the profile that a test does not wait for.
SMALL = {
    name: getattr(SMALL_PROFILE, name)
    for name in (
        "dtype", "error_pieces", "training_budgets", "random_configurations", "batch_size",
        "budgets", "arbitrary_configurations", "search",
    )
}  # fmt: skip
#: One for each way to make, to train and to prepare a model.
NAMED = (
    "quantized",
    "closed-form",
    "in-order",
    "in-order-polished",
    "shared-lora",
    "coa-lora",
    "coa-lora-walk",
    "calibrated-coa-lora",
    "lq-lora",
    "alone",
    "in-order-by-sensitivity",
    "shared-lora-by-sensitivity",
)


@pytest.fixture(scope="module")
def run(tiny_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_c4(folder, PHRASES[:300], PHRASES[300:])
    profile = replace(
        PROFILES[NAME],
        model=tiny_folders["llama"],
        train_examples=128,
        validation_examples=32,
        scoring_examples=32,
        max_length=16,
        learning_rate=1e-3,
        **SMALL,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COALORA_DATA_DIR", str(folder))
        yield Run(profile, 0, "c4")


@pytest.fixture(scope="module")
def setup(run):
    return prepare(run)


def test_the_objective_is_the_pre_trained_model(setup):
    assert set(setup.train[0]) == {"input_ids", "attention_mask"}
    assert setup.pairs is None
    model = setup.new_model(rank=1, adjuster="none")
    assert evaluate(model, setup.validation, kind=setup.objective).loss == 0
    assert evaluate(setup.new_base(), setup.validation, kind=setup.objective).loss == 0
    quantized = evaluate(model, setup.validation, setup.allocated(3.0), kind=setup.objective)
    assert quantized.loss > 0.1


def test_fits_see_as_many_tokens_as_can_be_kept(setup, monkeypatch):
    model = setup.new_model(rank=1, adjuster="none")
    assert len(setup.fitting_batch(model)["input_ids"]) == len(setup.train)
    monkeypatch.setattr(preparation, "FITTED_TOKENS", 50)
    assert setup.fitting_batch(model)["input_ids"].shape == (3, 16)
    monkeypatch.setattr(preparation, "FITTED_TOKENS", 1)
    assert setup.fitting_batch(model)["input_ids"].shape == (1, 16)


@pytest.mark.parametrize("name", NAMED)
def test_methods_run_on_their_targets(name, setup, tmp_path):
    method = METHODS[f"recovery-{name}"]
    (job, *_) = all_jobs(setup.run.profile, [4], [0], [method.slug])
    record = read_record(run_job(setup, job, tmp_path))
    assert (record.protocol, record.profile) == (RECOVERY.protocol, NAME)
    budgets = {"budget": [3.0], "arbitrary": [None]}.get(method.trains_on, [3.0, 4.0, None, None])
    assert [result.budget for result in record.results] == budgets
    tokens = sum(len(block["input_ids"]) for block in setup.validation)
    for result in record.results:
        assert 0 < result.loss < 3
        assert 0 <= result.agreement <= 1
        assert (result.accuracy, result.correct, result.neighbours) == (None, None, None)
        assert result.examples == tokens
        assert result.passes == (setup.plan.steps if method.trained else 0)
    assert len(record.searches) == (method.search is not None)
    assert run_of(record) == replace(
        setup.run, profile=replace(setup.run.profile, rank=job.rank or 0)
    )


def losses(setup, *names):
    """At each target of methods by name, allocated ones first."""
    records = [make_record(setup, job_for(f"recovery-{name}", 4, 0)) for name in names]
    return [torch.tensor([result.loss for result in each.results]) for each in records]


def test_what_was_fitted_is_nearer(setup):
    names = ("quantized", "closed-form", "in-order", "in-order-polished")
    quantized, closed, ordered, polished = losses(setup, *names)
    assert (quantized > closed).all()
    assert (closed > ordered).all()
    assert polished.mean() < ordered.mean()


def test_what_was_trained_is_nearer(setup):
    profile = replace(setup.run.profile, epochs=20, learning_rate=5e-3)
    longer = replace(setup, run=replace(setup.run, profile=profile))
    quantized, shared, ours = losses(longer, "quantized", "shared-lora", "coa-lora")
    assert shared.mean() < 0.95 * quantized.mean()
    assert ours.mean() < 0.95 * quantized.mean()


def test_bits_by_sensitivity_lessen_the_divergence(setup):
    """Of what they are measured with; of arbitrary configurations nothing changes."""
    plain, sensitive = losses(setup, "bias-correction", "bias-correction-by-sensitivity")
    assert (sensitive[:2] < plain[:2]).all()
    assert torch.equal(sensitive[2:], plain[2:])


def test_steps_after_a_fit_take_a_batch_of_the_training(setup, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "coalora_lib.experiments.makers.polish",
        lambda *_, **settings: sizes.append(settings["batch_size"]),
    )
    make_record(setup, job_for("recovery-in-order-polished", 4, 0))
    assert sizes == [setup.run.profile.batch_size] * 4


def test_a_record_is_made_again_and_stands_in_a_table(setup, tmp_path):
    path = run_job(setup, job_for("recovery-closed-form", 4, 0), tmp_path / "stored")
    console = CliRunner(env={"COLUMNS": "400"})
    made = console.invoke(app, ["reproduce", str(path), "--results", str(tmp_path / "made")])
    assert made.exit_code == 0, made.output
    first = read_record(path).results[0]
    assert f" bits, allocated: {first.loss:.4f}, {first.loss:.4f}" in made.stdout
    words = ["results", str(tmp_path / "stored"), "--where", "budget=3"]
    assert f"{first.loss:.4f}" in console.invoke(app, words).stdout
    shown = console.invoke(app, [*words, "--metric", "agreement"]).stdout
    assert f"{100 * first.agreement:.2f}" in shown
    MethodRun(job_for("recovery-closed-form", 4, 0), setup.run).check(path.read_bytes())


def test_the_methods_are_those_of_recovery(run):
    assert compared_for(run.profile) == list(methods_of("recovery"))
    words = ["methods=[recovery-in-order]", f"profile={NAME}", "dataset=c4", "ranks=[8]"]
    (job,) = Grid.read(None, words).jobs()
    assert job.name == f"recovery-in-order-rank8-c4-{NAME}-seed0"
    for slug in ("coa-lora", "deployment-in-order"):
        with pytest.raises(ValueError, match=f"profile '{NAME}' is of kind 'next-token'"):
            all_jobs(run.profile, [4], [0], [slug])


def test_other_data_and_chapters_are_refused():
    for dataset in ("sst2-texts", "sst2", "embedded"):
        with pytest.raises(ValueError, match=f"of kind 'next-token'; data set '{dataset}' is for"):
            prepare(Run(PROFILES[NAME], 0, dataset))
    with pytest.raises(ValueError, match="data set 'c4' is for causal-lm or next-token"):
        prepare(Run(PROFILES["recovery-quick"], 0, "c4"))
    with pytest.raises(ValueError, match=f"profile='{NAME}' is not known; allowed: quick, stand"):
        begin({"profile": NAME, "seed": 0}, "profile", "seed")


def test_a_set_up_without_a_model_to_aim_at_cannot_be_evaluated(setup):
    aimless = replace(setup, objective=NextToken())
    with pytest.raises(ValueError, match="needs a model to aim at, and there is none"):
        make_record(aimless, job_for("recovery-quantized", 4, 0))


def test_the_profiles_share_the_papers_models_and_the_sets_of_recovery():
    standard = PROFILES["recovery-standard"]
    for name in ("qwen2.5-1.5b", "qwen2.5-3b", "llama-2-7b"):
        paper, profile = PROFILES[f"paper-{name}"], PROFILES[f"recovery-{name}"]
        assert profile.kind == "next-token"
        for field in ("model", "dtype", "max_length", "batch_size", "learning_rate"):
            assert getattr(profile, field) == getattr(paper, field)
        for field in ("rank", "alpha", "training_budgets", "random_configurations", "budgets"):
            assert getattr(profile, field) == getattr(standard, field)
