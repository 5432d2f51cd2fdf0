"""The paper's models and tasks, as tiny models of the same architectures on generated phrases."""

import math
from dataclasses import replace

import pytest
import torch
import transformers
from datasets import Dataset

from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.experiments import PROFILES, Run, prepare, scale
from coalora_lib.experiments.runner import job_for, run_job
from coalora_lib.experiments.scale import FULL_SIZES, ScaleRecord, measure_scale, random_model
from coalora_lib.records import read_record
from coalora_lib.tasks import TaskSplits, load_classifier, small_decoder
from coalora_lib.tasks.embedded import review_phrases
from tests.conftest import SIZES, TINY, write_c4

PHRASES = [text for text, _ in review_phrases(160, 0)]
SMALL = {
    "train_examples": 96,
    "validation_examples": 16,
    "scoring_examples": 16,
    "max_length": 16,
    "rank": 2,
    "alpha": 2,
    "epochs": 1,
    "batch_size": 4,
    "training_budgets": (2.5, 4.0),
    "budgets": (3.0,),
    "arbitrary_configurations": 1,
}


def small(name, folder):
    """A profile of the paper's with everything small but its names."""
    profile = PROFILES[name]
    search = replace(profile.search, rounds=2, restarts=1, max_steps=2, proposals=1)
    return replace(profile, model=str(folder), search=search, **SMALL)


@pytest.fixture
def c4(tmp_path, monkeypatch):
    """C4 as generated phrases."""
    monkeypatch.setenv("COALORA_DATA_DIR", str(tmp_path))
    write_c4(tmp_path, PHRASES[:128], PHRASES[128:])


@pytest.mark.parametrize(
    ("kind", "profile"), [("llama", "paper-llama-2-7b"), ("qwen2", "paper-qwen2.5-3b")]
)
@pytest.mark.parametrize("method", ["coa-lora", "lq-lora"])
def test_a_language_model_goes_the_whole_way(kind, profile, method, c4, tmp_path):
    tokenizer = small_decoder(Dataset.from_dict({"sentence": PHRASES})).tokenizer
    config = TINY[kind]().config
    config.vocab_size = len(tokenizer)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    setup = prepare(Run(small(profile, tmp_path / "model"), 0, "c4"))
    assert {example["labels"].shape for example in setup.train} == {(16,)}
    budget = 3.0 if method == "lq-lora" else None
    record = read_record(run_job(setup, job_for(method, 2, 0, budget), tmp_path / "records"))
    assert len(record.searches) == (method == "coa-lora")
    assert [r.budget for r in record.results] == [3.0, None][: 1 if budget else 2]
    for result in record.results:
        assert result.loss < math.log(len(tokenizer)) + 0.5
        assert result.correct is None
        with pytest.raises(ValueError, match="no correctness per example"):
            _ = result.correctness


def test_a_classifier_on_texts_without_labels_is_refused(c4):
    with pytest.raises(
        ValueError, match="'quick' is of kind 'single-label'; data set 'c4' is for causal"
    ):
        prepare(Run(PROFILES["quick"], 0, "c4"))
    with pytest.raises(
        ValueError, match="'paper-llama-2-7b' is of kind 'causal-lm'; data set 'sst2'"
    ):
        prepare(Run(PROFILES["paper-llama-2-7b"], 0, "sst2"))


def test_roberta_on_pairs_of_three_classes_goes_the_whole_way(tmp_path, monkeypatch):
    rows = {"sentence": PHRASES, "second": PHRASES[::-1], "label": [i % 3 for i in range(160)]}
    data = Dataset.from_dict(rows)
    splits = TaskSplits(data.select(range(128)), data.select(range(128, 160)))
    monkeypatch.setattr("coalora_lib.experiments.setup.load_task", lambda name: splits)
    tokenizer = load_classifier()[1]
    config = transformers.RobertaConfig(
        **SIZES | {"vocab_size": len(tokenizer)}, intermediate_size=48, type_vocab_size=2
    )
    transformers.RobertaForMaskedLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    setup = prepare(Run(small("paper", tmp_path / "model"), 0, "mnli"))
    record = read_record(run_job(setup, job_for("coa-lora", 2, 0), tmp_path / "records"))
    assert record.dataset == "mnli"
    assert [r.budget for r in record.results] == [3.0, None]
    assert all(result.correctness.shape == (16,) for result in record.results)


def test_the_papers_profiles_have_its_hyperparameters():
    for name, length, epochs in (
        ("paper", 128, 10),
        ("paper-qwen2.5-1.5b", 1024, 5),
        ("paper-qwen2.5-3b", 1024, 5),
        ("paper-llama-2-7b", 1024, 5),
    ):
        profile = PROFILES[name]
        assert (profile.rank, profile.learning_rate) == (64, 1e-4)
        assert (profile.max_length, profile.epochs) == (length, epochs)
        assert profile.training_budgets[0] == 2.25
        assert profile.training_budgets[-1] == 7.25
        assert len(profile.training_budgets) == 50


def test_the_shapes_are_those_that_the_paper_counts():
    expected = {"paper": 144, "paper-qwen2.5-1.5b": 196, "paper-qwen2.5-3b": 252}
    expected["paper-llama-2-7b"] = 224
    for name, layers in expected.items():
        model = random_model(name, "meta")
        assert len(adaptable_layers(model)) == layers
    assert sum(p.numel() for p in model.parameters()) == 6_738_415_616


@pytest.mark.parametrize("name", ["paper", "paper-qwen2.5-3b"])
def test_scale_is_measured_and_halves_the_batch_until_it_fits(name, monkeypatch, tmp_path):
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    monkeypatch.setitem(FULL_SIZES, name, FULL_SIZES[name] | sizes)
    profile = replace(PROFILES[name], rank=2, batch_size=8, max_length=16)
    monkeypatch.setitem(PROFILES, name, profile)
    step = scale._step_seconds

    def full_above_two(model, profile, batch_size):
        if batch_size > 2:
            raise torch.OutOfMemoryError
        return step(model, profile, batch_size)

    monkeypatch.setattr(scale, "_step_seconds", full_above_two)
    record = measure_scale(name, tmp_path)
    assert record.batch_size == 2
    assert record.layers == (12 if name == "paper" else 14)
    assert set(record.seconds) == {"error table", "switch", "step"}
    assert all(seconds > 0 for seconds in record.seconds.values())
    written = (tmp_path / f"scale-{name}.json").read_text()
    assert ScaleRecord.model_validate_json(written) == record
    with pytest.raises(ValueError, match="profile='quick' is not known; allowed: paper, paper-qw"):
        measure_scale("quick", tmp_path)
