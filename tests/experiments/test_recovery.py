"""Embeddings of a quantized model brought back: data, set-up, every method on one tiny job."""

import operator
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from typer.testing import CliRunner

from coalora_lib.batch.grid import Grid
from coalora_lib.cli import app
from coalora_lib.experiments import PROFILES, Run, prepare, protocols
from coalora_lib.experiments.methods import (
    ALONE_BITS,
    METHODS,
    compared_for,
    methods_of,
)
from coalora_lib.experiments.protocols import DEPLOYMENT, RECOVERY
from coalora_lib.experiments.runner import all_jobs, job_for, make_record, run_job, run_of
from coalora_lib.experiments.similarity import ScoredPairs
from coalora_lib.kinds.embedding import mean_pooled
from coalora_lib.records import read_record
from coalora_lib.tasks.embedded import review_phrases
from coalora_lib.training import evaluate
from tests.conftest import SMALL_PROFILE

pytestmark = pytest.mark.usefixtures("few_steps")

PHRASES = [text for text, _ in review_phrases(400, 0)]


@pytest.fixture(scope="module")
def run(small_run):
    profile = replace(
        SMALL_PROFILE, kind="embedding", model=small_run.profile.model, validation_examples=16
    )
    return Run(profile, 0)


@pytest.fixture(scope="module")
def setup(run):
    return prepare(run)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with STS-B, whose sentences are generated."""
    monkeypatch.setenv("COALORA_DATA_DIR", str(tmp_path))
    (tmp_path / "stsb").mkdir()
    for name, texts in (("train", PHRASES[:360]), ("dev", PHRASES[360:])):
        pairs = zip(texts[::2], texts[1::2], strict=True)
        lines = (f"g\tf\t2012\t{i}\t{i % 6}\t{a}\t{b}\n" for i, (a, b) in enumerate(pairs))
        (tmp_path / "stsb" / f"sts-{name}.csv").write_text("".join(lines))
    return tmp_path


def test_examples_aim_at_the_unquantized_models_vectors(setup):
    base = setup.new_base().eval()
    for example in (setup.train[0], setup.scoring[3], setup.validation[5]):
        batch = {name: example[name][None] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            pooled = mean_pooled(base(**batch), batch)[0]
        torch.testing.assert_close(example["labels"], pooled / pooled.norm())
    assert setup.pairs is None


def test_moments_are_of_the_texts_of_fits(setup):
    assert set(setup.moments.seconds) == set(setup.weights)
    for name, mean in setup.mean_inputs.items():
        torch.testing.assert_close(setup.moments.means[name], mean)
    batch = setup.fitting_batch(setup.new_model())
    assert len(batch["input_ids"]) == len(setup.train)


@pytest.mark.parametrize("method", methods_of("recovery"))
def test_every_method_runs_on_its_targets(method, setup, tmp_path):
    (job, *_) = all_jobs(setup.run.profile, [4], [0], [method])
    record = read_record(run_job(setup, job, tmp_path))
    about = METHODS[method]
    assert record.protocol == RECOVERY.protocol
    assert record.job.rank == (4 if about.has_rank else None)
    budgets = {"budget": [3.0], "arbitrary": [None]}.get(about.trains_on, [3.0, 4.0, None, None])
    assert [result.budget for result in record.results] == budgets
    for result in record.results:
        assert 0 < result.loss < 2
        assert 0 <= result.neighbours <= 1
        assert (result.accuracy, result.correct, result.spearman) == (None, None, None)
        assert result.examples == 16
        assert result.passes == (setup.plan.steps if about.trained else 0)
    phases = {"preparation", "evaluation"} | ({"training", "search"} if about.trained else set())
    assert set(record.phases) == phases | ({"fitting"} if about.fitter else set())
    assert (record.stored == 0) == (not about.trained and not about.adapter)
    assert run_of(record).profile.kind == "embedding"


def losses(setup, *names):
    """At the first target, of methods by name."""
    return [make_record(setup, job_for(f"recovery-{n}", 4, 0)).results[0].loss for n in names]


def test_what_is_closed_form_brings_embeddings_nearer(setup):
    """The mean helps, and the second moment beyond it; a set of 16 texts is small for the order."""
    names = ("quantized", "bias-correction", "closed-form", "in-order")
    quantized, mean, second, ordered = losses(setup, *names)
    assert quantized > mean > second
    assert mean > ordered


def test_bits_by_sensitivity_weigh_the_errors_of_each_layer(setup):
    """By the slopes of the loss; one of them is measured here by another route."""
    weighted = setup.by_sensitivity()
    weights = weighted.errors / setup.errors
    torch.testing.assert_close(weights.amin(1), weights.amax(1))
    assert weighted.allocated(3.0) != setup.allocated(3.0)
    model = setup.new_model(
        rank=1, adjuster="none", bias_correction=True, mean_inputs=setup.mean_inputs
    )
    space, bits = setup.space, setup.space.bits_table()
    finest = [space.choices[row] for row in setup.errors.argmin(1)]
    layer, rises, errors = 3, [], []
    for more in (0.3, 1.3, 2.3):
        row = int(setup.errors[layer].masked_fill(bits > bits.min() + more, torch.inf).argmin())
        coarse = [*finest[:layer], space.choices[row], *finest[layer + 1 :]]
        found = [evaluate(model, setup.scoring, each).loss for each in (coarse, finest)]
        rises.append(max(0.0, found[0] - found[1]))
        errors.append(float(setup.errors[layer, row]))
    slope = sum(map(operator.mul, rises, errors)) / sum(error**2 for error in errors)
    assert float(weights[layer, 0]) == pytest.approx(slope, rel=1e-3)


def test_fits_in_order_are_what_their_labels_say(run):
    """On more texts, so that they help; each part is another fit, and so is what is polished."""
    profile = replace(run.profile, train_examples=128, budgets=(3.0,), arbitrary_configurations=1)
    larger = prepare(Run(profile, 0))
    quantized, outputs, residuals, even, ordered, polished = losses(
        larger,
        "quantized",
        "in-order-outputs",
        "in-order-residuals",
        "in-order-even-ranks",
        "in-order",
        "in-order-polished",
    )
    assert len({outputs, residuals, even, ordered, polished}) == 5
    assert max(outputs, residuals, even, ordered, polished) < quantized
    assert ordered < outputs


def test_a_run_for_one_arbitrary_configuration_takes_the_nearest(setup):
    jobs = all_jobs(setup.run.profile, [4], [0], ["recovery-alone"])
    assert [job.budget for job in jobs] == list(ALONE_BITS)
    arbitrary = [setup.space.mean_bits(each, setup.shapes) for each in setup.arbitrary()]
    record = make_record(setup, jobs[-1])
    (result,) = record.results
    assert result.bits == min(arbitrary, key=lambda bits: abs(bits - ALONE_BITS[-1]))
    with pytest.raises(ValueError, match="recovery-alone needs a budget"):
        job_for("recovery-alone", 4, 0)


def test_a_fit_is_made_before_a_configuration_is_trained_on_and_evaluated(setup, monkeypatch):
    seen, made = [], []

    def fitter(given, model):
        assert given is setup
        made.append(model)
        return lambda each: seen.append((tuple(each), model.training_set != []))

    method = replace(METHODS["recovery-coa-lora"], fitter=fitter)
    monkeypatch.setitem(METHODS, "recovery-coa-lora", method)
    record = make_record(setup, job_for("recovery-coa-lora", 4, 0))
    trained = [(tuple(each), False) for each in setup.training_set()]
    evaluated = [(tuple(each), True) for _, each in RECOVERY.targets(setup)]
    assert seen == trained + evaluated
    assert len(made) == 1
    assert record.phases["fitting"] >= 0


def test_pairs_with_scores_are_correlated(folder, run, tmp_path):
    profile = replace(run.profile, train_examples=16, validation_examples=16)
    setup = prepare(Run(profile, 0, "stsb-texts"))
    assert len(setup.pairs.examples) == 2 * len(setup.pairs.scores) == 40
    record = read_record(run_job(setup, job_for("recovery-quantized", 4, 0), tmp_path))
    assert len({result.spearman for result in record.results}) > 1
    model = setup.new_model(rank=1, adjuster="none").eval()
    model.set_configuration(setup.allocated(3.0))
    vectors = []
    for example in setup.pairs.examples:
        batch = {name: example[name][None] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            vectors.append(mean_pooled(model(**batch), batch)[0])
    cosines = [
        torch.cosine_similarity(vectors[i], vectors[20 + i], dim=0).item() for i in range(20)
    ]
    expected = spearmanr(cosines, setup.pairs.scores).statistic
    assert record.results[0].spearman == pytest.approx(expected, abs=1e-6)


def test_without_variation_there_is_no_correlation():
    pairs = ScoredPairs([], [1.0, 2.0])
    assert pairs.correlation(torch.ones(4, 3)) is None
    assert pairs.correlation(torch.full((4, 3), torch.nan)) is None


def test_a_record_is_made_again(setup, tmp_path):
    path = run_job(setup, job_for("recovery-bias-correction", 4, 0), tmp_path / "stored")
    words = ["reproduce", str(path), "--results", str(tmp_path / "made")]
    made = CliRunner(env={"COLUMNS": "400"}).invoke(app, words)
    assert made.exit_code == 0, made.output
    loss = f"{read_record(path).results[0].loss:.4f}"
    assert f" bits, allocated: {loss}, {loss}" in made.stdout


def test_the_command_runs_the_group_of_the_profile(run, tmp_path, monkeypatch):
    monkeypatch.setitem(PROFILES, "recovery-quick", replace(run.profile, name="recovery-quick"))
    jobs = []
    monkeypatch.setattr("coalora_lib.cli.runs._run_missing", lambda found, *_: jobs.extend(found))
    words = ["experiments", "--profile", "recovery-quick", "--rank", "4"]
    made = CliRunner().invoke(app, [*words, "--results", str(tmp_path)])
    assert made.exit_code == 0, made.output
    assert {job.method for job in jobs} == set(methods_of("recovery"))


def test_a_grid_names_the_methods(run):
    words = ["methods=[recovery-coa-lora, recovery-lq-lora]", "profile=recovery-quick", "ranks=[4]"]
    names = [job.name for job in Grid.read(None, words).jobs()]
    budgets = PROFILES["recovery-quick"].budgets
    assert names == ["recovery-coa-lora-rank4-embedded-recovery-quick-seed0"] + [
        f"recovery-lq-lora-rank4-{budget:g}bits-embedded-recovery-quick-seed0" for budget in budgets
    ]


def test_methods_and_profiles_of_other_kinds_are_refused(run):
    assert compared_for(run.profile) == list(methods_of("recovery"))
    assert compared_for(PROFILES["quick"]) == list(methods_of("main", "fitted"))
    with pytest.raises(ValueError, match="method 'coa-lora' is for single-label or causal-lm; pr"):
        all_jobs(run.profile, [4], [0], ["coa-lora"])
    with pytest.raises(ValueError, match="method 'recovery-coa-lora' is for embedding or next"):
        all_jobs(PROFILES["quick"], [4], [0], ["recovery-coa-lora"])
    with pytest.raises(ValueError, match="data set 'sst2-texts' is for embedding"):
        prepare(Run(PROFILES["quick"], 0, "sst2-texts"))


def test_the_profile_takes_1500_steps_of_128():
    profile = PROFILES["recovery-standard"]
    assert profile.epochs * (profile.train_examples // profile.batch_size) == 1500
    assert (profile.rank, profile.batch_size, profile.learning_rate) == (8, 128, 1e-3)
    assert len(profile.training_budgets) == profile.random_configurations == 25


def test_a_deployment_trains_and_is_evaluated_on_gguf_types(setup, tmp_path, monkeypatch):
    """As a recovery, in another space: allocated ones, then one type for all layers."""
    budgets = (7.0, 8.4)
    monkeypatch.setattr(protocols, "GGUF_BUDGETS", budgets)
    monkeypatch.setattr(protocols, "GGUF_TRAINING_BUDGETS", budgets)
    monkeypatch.setattr(protocols, "GGUF_UNIFORM", ("F16",))  # rows of 48 take nothing else
    alone = replace(METHODS["deployment-q4_0-alone"], uniform="F16")
    monkeypatch.setitem(METHODS, "deployment-q4_0-alone", alone)
    for method in ("deployment-bias-correction", "deployment-shared-lora", "deployment-q4_0-alone"):
        (job,) = all_jobs(setup.run.profile, [4], [0], [method])
        record = read_record(run_job(setup, job, tmp_path))
        assert (record.protocol, job.space) == (DEPLOYMENT.protocol, "gguf")
        assert [each.budget for each in record.results] == [*budgets, None]
        assert record.results[-1].bits == 16
        assert all(each.bits <= each.budget for each in record.results[:2])


def test_a_uniform_method_trains_on_one_type(setup):
    (trained,) = METHODS["deployment-q4_0-alone"].first_set(setup)
    assert {choice.type for choice in trained} == {"Q4_0"}
    assert len(trained) == len(setup.weights)
