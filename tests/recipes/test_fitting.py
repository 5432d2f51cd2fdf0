"""A model and some texts become an adapter without training: recipe, files, errors."""

import json

import pandas as pd
import pytest
import torch
import transformers
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForSequenceClassification,
)
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from coalora_lib.adapter import CoaLora, OrderedFit
from coalora_lib.kinds.embedding import mean_pooled
from coalora_lib.quantization import load_quantized
from coalora_lib.recipes import Device, RunFolder, Settings, adapt, adapt_to_texts, train_run
from coalora_lib.recipes.texts import drawn, plain_texts
from coalora_lib.tasks.embedded import review_phrases
from coalora_lib.training.batches import collate

TEXTS = list(dict.fromkeys(text for text, _ in review_phrases(120, 0)))
SMALL = {"rank": 4, "max_length": 16, "count": 40}
#: Coarse enough that there is something to recover.
BITS = Device(bits=2.25)
AUTO = {
    "bert": AutoPeftModelForFeatureExtraction,
    "llama": AutoPeftModelForCausalLM,
    "gpt2": AutoPeftModelForCausalLM,
}


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    """A finished run of a tiny classifier."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [(text, ("bad", "good")[label]) for text, label in review_phrases(60, 0)]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / "reviews.csv", index=False)
    settings = Settings(
        model=small_run.profile.model, data=str(folder / "reviews.csv"), label="label", rank=4,
        epochs=1, batch_size=8, configurations=2, max_length=16,
    )  # fmt: skip
    return train_run(folder / "run", settings)


def outputs(model, tokenizer, texts):
    """Vectors of texts, or logits at their tokens."""
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    batch = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = model.eval()(**batch)
    if "logits" in output:
        return output.logits[batch["attention_mask"].bool()]
    return mean_pooled(output, batch)


def mean_rank(folder):
    """Of an adapter's layers, each counted by the numbers that a rank takes in it."""
    stored = load_file(folder / "adapter_model.safetensors")
    factors = [t for name, t in stored.items() if name.endswith(("_A.weight", "_B.weight"))]
    return sum(t.numel() for t in factors) / sum(max(t.shape) for t in factors)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_any_model_comes_nearer_and_plain_peft_gives_what_was_measured(
    kind, tiny_folders, tmp_path
):
    made = adapt_to_texts(tiny_folders[kind], TEXTS, tmp_path / "phone", BITS, **SMALL)
    assert made.after < 0.8 * made.before
    assert made.texts == {"fitted": 40, "measured": len(TEXTS) // 5}
    assert made.adapted.bits <= 2.25
    assert 0.9 < mean_rank(tmp_path / "phone") / 4 <= 1

    # By another route: transformers and PEFT alone, on the texts that were held out.
    _, others = drawn(TEXTS, 40, 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "phone" / "base_model")
    plain = AUTO[kind].from_pretrained(tmp_path / "phone")
    whole = getattr(transformers, plain.get_base_model().__class__.__name__)
    wanted = outputs(whole.from_pretrained(tiny_folders[kind]), tokenizer, others)
    found = outputs(plain, tokenizer, others)
    if kind == "bert":
        assert made.measure == "1 - cosine"
        distance = 1 - torch.cosine_similarity(wanted, found).mean()
    else:
        assert made.measure == "KL"
        p, q = wanted.double().softmax(-1), found.double().softmax(-1)
        distance = (p * (p / q).log()).sum(-1).mean()
    assert made.after == pytest.approx(float(distance), rel=1e-3)


@pytest.mark.parametrize("rounding", ["compensated", "nearest", None])
def test_it_is_fit_in_order_on_the_texts_that_were_drawn(rounding, tiny_folders, tmp_path):
    """Its codes make up for each other unless the nearest are asked for."""
    asked = {"weights": "packed", "seed": 3} | ({"rounding": rounding} if rounding else {})
    adapt_to_texts(tiny_folders["bert"], TEXTS, tmp_path / "phone", BITS, **asked, **SMALL)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folders["bert"])
    base = AutoModel.from_pretrained(tiny_folders["bert"])
    model = CoaLora.attach(base, rank=1, heads=())
    texts, _ = drawn(TEXTS, 40, 3)
    ids = [torch.tensor(tokenizer(text)["input_ids"][:16]) for text in texts]
    batch = collate([{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids], 0)
    OrderedFit(model, batch, compensated=rounding != "nearest", seed=3).fit(2.25, rank=4)
    (fitted,) = model.layers.fitted.values()
    packed = load_quantized(tmp_path / "phone" / "quantized.safetensors")
    for name, each in model.layers.packed(model.resolve(2.25)).items():
        alike = packed[name].codes == each.quantized.codes
        assert alike.double().mean() > 0.99  # padding rounds what is near a threshold otherwise
    stored = load_file(tmp_path / "phone" / "adapter_model.safetensors")
    for name, each in zip(model.layer_names, fitted, strict=True):
        left, right = (stored[f"base_model.model.{name}.lora_{x}.weight"] for x in "BA")
        torch.testing.assert_close(left @ right, each.left @ each.right, atol=1e-5, rtol=1e-4)


def test_a_saved_model_keeps_its_adapter_beside_what_is_fitted(tiny_folders, tmp_path):
    base = AutoModel.from_pretrained(tiny_folders["bert"])
    model = CoaLora.attach(base, rank=2, heads=(), adjuster="none")
    for factors in model.layers.factors():
        torch.nn.init.normal_(factors.l1, std=0.02)
    folder = model.save_pretrained(tmp_path / "saved")
    made = adapt_to_texts(folder, TEXTS, tmp_path / "phone", BITS, **SMALL)
    assert made.after < made.before
    assert 0.9 < mean_rank(tmp_path / "phone") / (2 + 4) <= 1
    with pytest.raises(ValueError, match="space= is for a model without an adapter"):
        adapt_to_texts(folder, TEXTS, tmp_path / "phone", BITS, space="int", **SMALL)


def test_a_run_keeps_its_head_and_adapter(run, tmp_path):
    made = adapt_to_texts(run.path, TEXTS, tmp_path / "phone", BITS, **SMALL)
    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "phone")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "phone" / "base_model")
    head = plain.get_base_model().classifier.modules_to_save["default"].weight
    trained = RunFolder.open(run.path).load_model().state_dict()
    name = next(n for n in trained if n.endswith("classifier.modules_to_save.default.weight"))
    assert torch.equal(head, trained[name])
    with torch.no_grad():
        batch = tokenizer("a fine film", return_tensors="pt")
        assert plain(**batch).logits.shape == (1, 2)
    trained_alone = adapt(run, tmp_path / "other", BITS)
    assert made.adapted.layers == trained_alone.layers


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_polish_brings_it_nearer(kind, tiny_folders, tmp_path):
    asked = tiny_folders[kind], TEXTS, tmp_path / "phone", BITS
    fitted, polished = (adapt_to_texts(*asked, polish=steps, **SMALL) for steps in (0, 25))
    assert polished.after < fitted.after
    assert polished.before == fitted.before


def test_bits_go_where_an_error_does_harm(tiny_folders, tmp_path):
    """A layer whose output is multiplied by zero gets the fewest bits, and what is saved goes to
    the others; by the error of weights it is like any other."""
    base = AutoModel.from_pretrained(tiny_folders["bert"])
    silent = "encoder.layer.0.output.dense"
    idle = "encoder.layer.0.intermediate.dense"
    base.get_submodule(silent).weight.data.zero_()
    base.save_pretrained(tmp_path / "silent")
    AutoTokenizer.from_pretrained(tiny_folders["bert"]).save_pretrained(tmp_path / "silent")
    bits, distances = {}, {}
    for allocation in ("error", "sensitivity"):
        out, asked = tmp_path / allocation, {"allocation": allocation, **SMALL}
        made = adapt_to_texts(tmp_path / "silent", TEXTS, out, Device(bits=3.0), "packed", **asked)
        bits[allocation] = {n: choice.weight_bits for n, choice in made.adapted.layers.items()}
        distances[allocation] = made.before
        assert made.adapted.bits <= 3.0
    assert bits["sensitivity"][idle] == min(bits["sensitivity"].values()) < bits["error"][idle]
    assert distances["sensitivity"] < distances["error"]


def test_texts_are_lines_or_a_column(tmp_path):
    lines = tmp_path / "texts.txt"
    lines.write_bytes("one\r\n\r\n  \r\ntwo, three\r\nzwölf".encode())
    assert plain_texts(lines, "text") == ["one", "two, three", "zwölf"]
    table = pd.DataFrame({"text": ["a", "b"], "other": ["c", "d"]})
    table.to_csv(tmp_path / "t.csv")
    table.to_csv(tmp_path / "t.tsv", sep="\t")
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "t.parquet")
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        assert plain_texts(tmp_path / f"t.{suffix}", "other") == ["c", "d"]


def test_the_draw_is_the_seeds_and_holds_others_out():
    texts = [f"text {i}" for i in range(1000)] * 2
    fitted, others = drawn(texts, 300, 1)
    assert (len(fitted), len(others)) == (300, 200)
    assert not set(fitted) & set(others)
    assert drawn(texts, 300, 1) == (fitted, others)
    assert drawn(texts, 300, 2) != (fitted, others)
    assert [len(part) for part in drawn(["a", "b"], 256, 0)] == [1, 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rank": 0}, "rank: Input should be greater than or equal to 1, got 0"),
        ({"ranks": 3}, "ranks: Extra inputs are not permitted"),
        ({"space": "float"}, "space='float' is not known; allowed: nf, int"),
        ({"dtype": "int8"}, "dtype: Input should be 'float32', 'bfloat16' or 'float64'"),
        ({"weights": "all"}, "weights='all' is not known"),
        ({"allocation": "loss"}, "allocation"),
        ({"rounding": "up"}, "rounding: Input should be 'compensated' or 'nearest'"),
        ({"weights": None}, "weights=None would lose the codes that rounding='compensated' choo"),
        ({"texts": ["one", "one"]}, "1 text is not enough"),
        ({"texts": "texts.txt"}, r"texts\.txt: no such file"),
        ({"device": Device(bits=1.0)}, "not feasible"),
        ({"model": "nowhere"}, "nowhere cannot be loaded"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(
    changed, message, tiny_folders, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries
    monkeypatch.chdir(tmp_path)
    asked = {"model": tiny_folders["bert"], "texts": TEXTS, "out": "phone", "device": BITS}
    with pytest.raises((ValueError, OSError), match=message) as caught:
        adapt_to_texts(**asked | SMALL | changed)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"has no coalora_export\.json"):
        adapt_to_texts("nowhere", "nothing.txt", tmp_path, BITS)


def test_models_that_cannot_be_fitted_are_refused(tiny_folders, tmp_path):
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2
        )
    )
    t5.save_pretrained(tmp_path / "t5")
    AutoTokenizer.from_pretrained(tiny_folders["bert"]).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="is an encoder with a decoder"):
        adapt_to_texts(tmp_path / "t5", TEXTS, tmp_path / "phone", BITS, **SMALL)
    config = json.loads((tmp_path / "t5" / "config.json").read_text())
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config | {"architectures": ["os"]}))
    with pytest.raises(ValueError, match="names 'os', which is not a model class of transformers"):
        adapt_to_texts(tmp_path / "t5", TEXTS, tmp_path / "phone", BITS, **SMALL)
    assert not (tmp_path / "phone").exists()
