"""Own texts, a run, an adapter: in this process, with a tiny model from a folder."""

import json
import shutil

import pandas as pd
import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from coalora_lib.files import seal, unseal
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.recipes import (
    Device,
    RunFolder,
    Settings,
    adapt,
    evaluate_run,
    read_device,
    report,
    train_run,
)
from coalora_lib.tasks.embedded import review_phrases
from tests.conftest import SIZES

SMALL = {
    "text": "review",
    "label": "stars",
    "rank": 4,
    "epochs": 1,
    "batch_size": 8,
    "configurations": 2,
    "max_length": 16,
}


def phrases(count):
    return review_phrases(count, 0)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "reviews.csv"
    rows = [(text, ("bad", "good")[label]) for text, label in phrases(80)]
    pd.DataFrame(rows, columns=["review", "stars"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def run(reviews, small_run, tmp_path_factory):
    """A finished run of a tiny classifier."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train_run(folder, Settings(model=small_run.profile.model, data=str(reviews), **SMALL))


def test_a_run_says_what_it_came_to(run):
    again = RunFolder.open(run.path)
    assert again.outcome == run.outcome
    assert again.outcome.classes == ["bad", "good"]
    assert again.outcome.examples == {"training": 72, "validation": 8}
    assert len(again.outcome.losses) == 9
    assert [round(row["bits"], 1) for row in again.outcome.metrics][::3] == [2.2, 5.0]
    assert {"loss", "accuracy", "f1", "matthews"} < set(again.outcome.metrics[0])
    assert sorted(path.name for path in run.path.iterdir()) == ["model", "run.json", "tokenizer"]


def test_a_finished_run_is_left_as_it_is_and_another_one_is_refused(run, reviews):
    before = (run.path / "run.json").stat().st_mtime_ns
    train_run(run.path, run.settings)
    assert (run.path / "run.json").stat().st_mtime_ns == before
    other = run.settings.model_copy(update={"rank": 8})
    with pytest.raises(ValueError, match="is a run with rank=4, not 8"):
        train_run(run.path, other)
    with pytest.raises(FileExistsError, match=r"has no run\.json, so nothing was changed"):
        train_run(reviews.parent, run.settings)


def test_a_run_is_measured_on_another_table_with_its_own_classes(run, tmp_path):
    rows = [{"review": text, "stars": ("bad", "good")[label]} for text, label in phrases(20)]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["stars"] == "good"))
    (found,) = evaluate_run(run, [3.0], path)
    assert found["bits"] == pytest.approx(3, abs=0.05)
    assert 0 <= found["accuracy"] <= 1
    path.write_text(json.dumps({"review": "fine", "stars": "fair"}))
    with pytest.raises(ValueError, match=r"test\.jsonl.*line 1.*fair"):
        evaluate_run(run, [3.0], path)


@pytest.mark.parametrize("bits", [2.5, 4.0])
def test_what_is_adapted_is_plain_peft_with_its_own_base(run, bits, tmp_path, monkeypatch):
    made = adapt(run, tmp_path / "phone", Device(bits=bits))
    assert made.bits <= bits
    monkeypatch.chdir("/")  # the base is found from anywhere
    plain = AutoPeftModelForSequenceClassification.from_pretrained(made.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(made.folder / "base_model")
    batch = tokenizer(["a fine film", "dull"], return_tensors="pt", padding=True)
    model = run.load_model().eval()
    model.set_configuration(bits)
    with torch.no_grad():
        expected = model(**batch).logits
        torch.testing.assert_close(plain(**batch).logits, expected)
        moved = made.folder.rename(tmp_path / "moved")
        base = transformers.AutoModelForSequenceClassification.from_pretrained(moved / "base_model")
        there = PeftModel.from_pretrained(base, moved).eval()
        torch.testing.assert_close(there(**batch).logits, expected)


def test_a_device_is_bytes_allowed_values_and_fixed_layers(run, tmp_path):
    (layer, *_), space = run.load_model().layer_names, run.load_model().space
    path = tmp_path / "device.yaml"
    path.write_text(
        "bytes: 12kB\nallowed: {weight_bits: [2, 4]}\nfixed:\n"
        f"  {layer}: {{weight_bits: 8, scale_bits: 8, scale_dtype: fp16, block_size: 32, "
        "scale_block_size: 64}\n"
    )
    made = adapt(run, tmp_path / "phone", read_device(path), weights="packed")
    assert made.nbytes <= 12_000
    assert made.layers[layer] == BlockwiseChoice(8, 8, "fp16", 32, 64)
    rest = {choice.weight_bits for name, choice in made.layers.items() if name != layer}
    assert rest <= {2, 4}
    assert space.name == "nf"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bite: 3", r"'bite' is not known \(did you mean 'bits'\?\); allowed: bits, bytes"),
        ("bits: many", "bits: Input should be a valid number.*got 'many'"),
        ("bits: [", "is not YAML"),
        ("[" * 10_000, "is not YAML"),
        ("'\\ud800': 3", r"is not known|is not YAML"),
        ('fixed: {"a\\nb": 3}', r"fixed\.a b: Input should be a valid dictionary"),
        ("- 3", "holds no fields"),
        ("bits: -1", "bits: Input should be greater than 0"),
        ("bits: .inf", "bits: Input should be a finite number"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_wrong_description_is_named(text, message, tmp_path):
    (tmp_path / "device.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_device(tmp_path / "device.yaml")


def test_a_run_that_was_written_by_hand_is_refused_in_one_line(run, tmp_path):
    content = unseal((run.path / "run.json").read_text())
    outcome = content["outcome"]
    for changed in (
        content | {"outcome": {}},
        content | {"outcome": outcome | {"metrics": [{"accuracy": 0.5}]}},
        content | {"outcome": outcome | {"examples": {"training": 1}}},
        content | {"outcome": outcome | {"classes": ["good", "good"]}},
        content | {"a\nb": 1},
        {},
    ):
        (tmp_path / "run.json").write_text(seal(changed))
        with pytest.raises(ValueError, match=r"^.*run\.json cannot be read: [^\n]+$"):
            RunFolder.open(tmp_path)


def test_a_tokenizer_that_was_changed_is_refused_with_the_files_name(run, tmp_path, monkeypatch):
    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("httpx.Client.send", asked)
    shutil.copytree(run.path, tmp_path / "run")
    folder, copied = tmp_path / "run" / "tokenizer", RunFolder.open(tmp_path / "run")
    assert "tokenizer.json" in copied.described.tokenizer_sha256
    before = (folder / "tokenizer.json").read_text()
    content = json.loads(before)
    ids = content["model"]["vocab"]
    content["model"]["vocab"] = dict(zip(ids, reversed(ids.values()), strict=True))
    for text in (json.dumps(content), "{"):
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match=r"tokenizer/tokenizer\.json was changed: its sha256"):
            adapt(copied, tmp_path / "phone", Device(bits=3))
    content = unseal((run.path / "run.json").read_text())
    del content["tokenizer_sha256"]  # as of a run that was finished before
    (tmp_path / "run" / "run.json").write_text(seal(content))
    with pytest.raises(ValueError, match=r"run/tokenizer is no tokenizer: (?!the hub)"):
        RunFolder.open(tmp_path / "run").load_tokenizer()
    (folder / "tokenizer.json").write_text(before)
    assert len(RunFolder.open(tmp_path / "run").load_tokenizer()) == len(ids)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer/tokenizer\.json: no such file"):
        copied.load_tokenizer()
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="run/tokenizer: no such folder"):
        copied.load_tokenizer()


def test_what_no_device_can_do_is_refused_and_nothing_is_written(run, tmp_path):
    for device, message in (
        (Device(bits=1.0), "not feasible"),
        (Device(bytes=10), "not feasible"),
        (Device(bits=3, fixed={"layer.9": {}}), "'layer.9' is not a layer of the model"),
        (Device(bits=3, allowed={"weight_bits": [5]}), "5"),
    ):
        with pytest.raises(ValueError, match=message):
            adapt(run, tmp_path / "phone", device)
    assert not (tmp_path / "phone").exists()


def test_a_report_has_layers_and_sizes(run):
    found = report(run)
    assert len(found.layers) == 12
    assert all(len(bits) == len(found.sizes) == 4 for bits in found.layers.values())
    sizes = [each["bytes"] for each in found.sizes]
    assert sizes == sorted(sizes)
    assert "quantized and adapted" in found.parameters


def test_a_killed_run_goes_on_to_the_same_weights(run, tmp_path, monkeypatch):
    from coalora_lib.training import loop

    step = loop.Trainer.train_step
    monkeypatch.setattr("coalora_lib.recipes.training.CHECKPOINT_EVERY", 3)

    def stopped(trainer):
        if trainer.step == 5:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(loop.Trainer, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_run(tmp_path / "run", run.settings)
    monkeypatch.setattr(loop.Trainer, "train_step", step)
    again = train_run(tmp_path / "run", run.settings)
    assert again.outcome.losses == run.outcome.losses
    first, second = (load_file(e.path / "model" / "coalora.safetensors") for e in (run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_fine_tuned_model_keeps_its_head_and_the_order_of_its_classes(
    reviews, small_run, tmp_path
):
    names = {0: "good", 1: "bad"}  # not the alphabet's order
    config = transformers.AutoConfig.from_pretrained(small_run.profile.model)
    config.update({"id2label": names, "label2id": {name: i for i, name in names.items()}})
    torch.manual_seed(1)
    tuned = transformers.BertForSequenceClassification(config)
    tuned.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(small_run.profile.model).save_pretrained(tmp_path / "tuned")
    settings = Settings(
        model=str(tmp_path / "tuned"), data=str(reviews), **SMALL | {"learning_rate": 1e-12}
    )
    run = train_run(tmp_path / "run", settings)
    assert run.outcome.classes == ["good", "bad"]
    head = run.load_model().state_dict()
    name = next(n for n in head if n.endswith("classifier.modules_to_save.default.weight"))
    torch.testing.assert_close(head[name], tuned.classifier.weight.detach())


def test_texts_alone_train_a_language_model(tmp_path, small_run):
    tokenizer = AutoTokenizer.from_pretrained(small_run.profile.model)
    sizes = {**SIZES, "vocab_size": len(tokenizer)}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=48))
    model.save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    texts = pd.DataFrame({"text": [text for text, _ in phrases(60)]})
    texts.to_csv(tmp_path / "texts.csv", index=False)
    settings = Settings(
        model=str(tmp_path / "llama"), data=str(tmp_path / "texts.csv"),
        **SMALL | {"text": "text", "label": None},
    )  # fmt: skip
    run = train_run(tmp_path / "run", settings)
    assert run.outcome.kind == "causal-lm"
    assert "perplexity" in run.outcome.metrics[0]
    made = adapt(run, tmp_path / "phone", Device(bits=3))
    AutoPeftModelForCausalLM.from_pretrained(made.folder)


def test_texts_train_a_model_that_fills_in_or_writes_others(tmp_path, small_run):
    tokenizer = AutoTokenizer.from_pretrained(small_run.profile.model)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    sizes = {**SIZES, "vocab_size": len(tokenizer)}
    t5 = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    made = {
        "masked-lm": transformers.BertForMaskedLM(
            transformers.BertConfig(**sizes, intermediate_size=48)
        ),
        "seq2seq": transformers.T5ForConditionalGeneration(t5),
    }
    texts = [text for text, _ in phrases(40)]
    pd.DataFrame({"text": texts, "other": texts[::-1]}).to_csv(tmp_path / "t.csv", index=False)
    for kind, model in made.items():
        model.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        asked = {"text": "text", "label": None, "kind": kind}
        asked |= {"second": "other"} if kind == "seq2seq" else {}
        settings = Settings(
            model=str(tmp_path / kind), data=str(tmp_path / "t.csv"), **SMALL | asked
        )
        run = train_run(tmp_path / f"run-{kind}", settings)
        assert run.outcome.kind == kind
        assert run.load_model().settings.bias_correction == (kind == "masked-lm")
        assert "perplexity" in evaluate_run(run, [3.0], tmp_path / "t.csv")[0]
        adapt(run, tmp_path / f"phone-{kind}", Device(bits=3))


@pytest.mark.parametrize(
    ("column", "kind", "metric"),
    [([0.5, 2.5], "regression", "pearson"), ([["a", "b"], ["b"]], "several-labels", "f1_macro")],
    ids=["numbers", "several labels"],
)
def test_the_labels_say_the_kind_of_task(column, kind, metric, tmp_path, small_run):
    rows = [{"review": text, "stars": column[i % 2]} for i, (text, _) in enumerate(phrases(40))]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Settings(model=small_run.profile.model, data=str(path), **SMALL)
    run = train_run(tmp_path / "run", settings)
    assert run.outcome.kind == kind
    assert metric in run.outcome.metrics[0]
    assert metric in evaluate_run(run, [3.0], path)[0]


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["alpha", "epochs", "learning_rate"])
def test_a_setting_is_a_finite_number_above_zero(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: Input should be .*, got {value}$"):
        Settings.of(data="t.csv", **{name: value})
    with pytest.raises(ValueError, match=r"^budgets\.1: Input should be a finite number"):
        Settings.of(data="t.csv", budgets=(2, float("inf")))


def test_a_model_that_is_nowhere_is_named(reviews, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries
    settings = Settings(model="nowhere", data=str(reviews), **SMALL)
    with pytest.raises(OSError, match=r"^nowhere cannot be loaded: "):
        train_run(tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_together_is_named(reviews, small_run, tmp_path):
    model = small_run.profile.model

    def asked(**changed):
        return Settings(**{"model": model, "data": str(reviews), **SMALL} | changed)

    for settings, message in (
        (asked(label=None), "without label= the kind of task is not known"),
        (asked(kind="regression"), "stars"),
        (asked(kind="tokens"), "kind='tokens' is not for tables; allowed: single-label"),
        (asked(kind="single"), "kind='single' is not known"),
        (asked(text="reviews"), "review"),
    ):
        with pytest.raises(ValueError, match=message):
            train_run(tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()
