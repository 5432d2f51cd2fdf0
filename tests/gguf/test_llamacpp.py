"""llama.cpp computes what PyTorch does, with and without the adapter."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from coalora_lib.adapter import CoaLora, OrderedFit
from coalora_lib.allocation import Constraints
from coalora_lib.gguf.architectures import Names
from coalora_lib.kinds.embedding import mean_pooled
from coalora_lib.tasks.models import MINILM, load_as_saved
from tests.gguf.llamacpp import needs_llamacpp, run
from tests.gguf.models import MODELS, TEXTS, TOKENIZERS, byte_level, made, mixed

pytestmark = needs_llamacpp

#: Relative, where nothing is rounded: float32 sums in another order. In a BERT GELU is: llama.cpp
#: looks it up in a table of 16 bits. 1 - cos is half the square.
EXACT, EXACT_VECTORS = 1e-5, 5e-4
#: Relative, where llama.cpp rounds activations to 8 bits: logits; and 1 - cos of vectors.
ROUNDED, ROUNDED_VECTORS = 3.5e-2, 5e-4
PROMPTS = [[5, 17, 300, 41], [9, 120, 33, 260, 12, 77, 350, 8, 8, 290, 31], list(range(20, 60))]
SENTENCES = [[2, 7, 33, 12, 3], [2, 40, 8, 9, 31, 50, 22, 22, 3], [2, 60, 61, 3]]


#: Types that are quantized to quickly.
FEW = ("Q3_K", "Q4_0", "Q5_1", "Q6_K", "Q8_0")


@torch.no_grad()
def in_pytorch(model, kind):
    """Log probabilities after each prompt, or the vector of each sentence."""
    found = []
    for tokens in SENTENCES if kind == "bert" else PROMPTS:
        batch = {"input_ids": torch.tensor([tokens])}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        output = model(**batch)
        if kind == "bert":
            found.append(F.normalize(mean_pooled(output, batch))[0])
        else:
            found.append(output.logits[0, -1].double().log_softmax(-1))
    return torch.stack(found).double().numpy()


def in_llamacpp(folder, kind, adapter=None):
    """The same."""
    if kind == "bert":
        return np.array(run(folder, "embeddings", SENTENCES, adapter))
    return np.array(run(folder, "logits", PROMPTS, adapter))


def distance(found, expected):
    """Relative; log probabilities are logits but for a number that all tokens have in common."""
    found, expected = (each - each.mean(-1, keepdims=True) for each in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def exact(found, expected, kind):
    """Whether two are alike but for the order of sums, and GELU."""
    return distance(found, expected) < (EXACT_VECTORS if kind == "bert" else EXACT)


def rounded(found, expected, kind):
    """Whether two are alike but for the rounding of activations."""
    if kind == "bert":
        return 1 - (found * expected).sum(-1).mean() < ROUNDED_VECTORS
    return distance(found, expected) < ROUNDED


def exported(kind, folder, space="gguf", **options):
    """An export of a model, and what PyTorch computes with and without its adapter."""
    model, tokenizer = made(kind, space, **options)
    model.set_configuration(mixed(model))
    model.export_gguf(folder, tokenizer=tokenizer, embedding="F32")
    whole = in_pytorch(model, kind)
    with model.disable_adapter():
        return whole, in_pytorch(model, kind)


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_differs_where_nothing_is_rounded(kind, tmp_path):
    whole, bare = exported(kind, tmp_path / "out", "gguf-exact")
    assert exact(in_llamacpp(tmp_path / "out", kind), bare, kind)
    assert exact(in_llamacpp(tmp_path / "out", kind, 1.0), whole, kind)
    assert distance(whole, bare) > 4 * ROUNDED


@pytest.mark.parametrize("kind", ["bert", "llama", "qwen2"])
def test_corrections_and_shifts_are_in_the_biases(kind, tmp_path):
    whole, bare = exported(kind, tmp_path / "out", "gguf-exact", bias_correction=True)
    assert exact(in_llamacpp(tmp_path / "out", kind, 1.0), whole, kind)
    assert exact(in_llamacpp(tmp_path / "out", kind), bare, kind)
    uncorrected, _ = exported(kind, tmp_path / "other", "gguf-exact")
    assert distance(whole, uncorrected) > ROUNDED
    options = {"bias_correction": True, "output_bias": True}
    whole, _ = exported(kind, tmp_path / "out", "gguf-exact", **options)
    assert exact(in_llamacpp(tmp_path / "out", kind, 1.0), whole, kind)


@pytest.mark.parametrize("kind", MODELS)
def test_quantized_types_differ_by_the_rounding_of_activations(kind, tmp_path):
    whole, bare = exported(kind, tmp_path / "out", start="residual", frozen_rank=3)
    found, alone = (in_llamacpp(tmp_path / "out", kind, each) for each in (1.0, None))
    assert rounded(found, whole, kind)
    # PyTorch keeps the frozen term where llama.cpp has it in the adapter.
    effect, expected = (found - alone).flatten(), (whole - bare).flatten()
    cosine = effect @ expected / np.linalg.norm(effect) / np.linalg.norm(expected)
    assert cosine > 0.99
    assert 0.97 < np.linalg.norm(effect) / np.linalg.norm(expected) < 1.03


@pytest.mark.parametrize("where", ["everywhere", "in the adapter"])
def test_a_forgotten_order_of_rows_is_noticed(where, tmp_path, monkeypatch):
    whole, bare = exported("llama", tmp_path / "good", "gguf-exact")
    monkeypatch.setattr(Names, "ordered", lambda self, name, rows: rows)
    exported("llama", tmp_path / "out", "gguf-exact")
    if where == "everywhere":
        assert distance(in_llamacpp(tmp_path / "out", "llama"), bare) > 10 * EXACT
    else:
        (tmp_path / "good" / "base.gguf").replace(tmp_path / "out" / "base.gguf")
    assert distance(in_llamacpp(tmp_path / "out", "llama", 1.0), whole) > ROUNDED


@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [*TOKENIZERS.items(), ("llama", lambda: byte_level("gpt-2"))],
    ids=[*TOKENIZERS, "gpt-2"],
)
def test_texts_become_the_same_tokens(kind, tokenizer, tmp_path):
    model, _ = made(kind, "gguf-exact")
    tokenizer = tokenizer()
    model.export_gguf(tmp_path / "out", mixed(model), tokenizer)
    assert run(tmp_path / "out", "tokens", TEXTS[-20:]) == tokenizer(TEXTS[-20:]).input_ids


def test_minilm_at_the_size_of_a_file(tmp_path):
    base, tokenizer = load_as_saved(MINILM, torch.float32)
    model = CoaLora.attach(base, 1, 1, adjuster="none", space="gguf", heads=()).eval()
    texts = sorted(set(TEXTS))[:40]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    limit = model.gguf_size_limit(20_000_000, tokenizer, embedding="Q8_0")
    configuration = model.resolve(Constraints(limits=[limit], allowed={"type": FEW}))
    fit = OrderedFit(model, {n: batch[n] for n in ("input_ids", "attention_mask")})
    fit.fit(configuration, rank=8)
    model.export_gguf(tmp_path / "out", configuration, tokenizer, embedding="Q8_0")
    assert (tmp_path / "out" / "base.gguf").stat().st_size <= 20_000_000
    model.set_configuration(configuration)
    with torch.no_grad():
        expected = F.normalize(mean_pooled(model(**batch), batch)).double().numpy()
    found = np.array(run(tmp_path / "out", "embeddings", texts, 1.0))
    assert rounded(found, expected, "bert")
