"""llama.cpp is asked in a process of its own; what fails there is one error here."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from coalora_lib.book import llamacpp
from coalora_lib.kinds.embedding import mean_pooled
from tests.gguf.llamacpp import needs_llamacpp
from tests.gguf.models import made, mixed
from tests.gguf.test_llamacpp import ROUNDED_VECTORS

TEXTS = ["a fine film", "b", "a dull remake of a remake"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A model, its tokenizer and its files."""
    model, tokenizer = made("bert")
    model.set_configuration(mixed(model))
    folder = tmp_path_factory.mktemp("export") / "out"
    model.export_gguf(folder, tokenizer=tokenizer, embedding="F32")
    return model, tokenizer, folder


@needs_llamacpp
def test_vectors_are_those_of_pytorch_with_and_without_the_adapter(written):
    model, tokenizer, folder = written
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    found = llamacpp.embed(folder / "base.gguf", TEXTS, folder / "adapter.gguf", passes=2)
    bare = llamacpp.embed(folder / "base.gguf", TEXTS)
    with torch.no_grad():
        whole = F.normalize(mean_pooled(model(**batch), batch)).double().numpy()
        with model.disable_adapter():
            without = F.normalize(mean_pooled(model(**batch), batch)).double().numpy()
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    assert 1 - (found.vectors * whole).sum(1).mean() < ROUNDED_VECTORS
    assert 1 - (bare.vectors * without).sum(1).mean() < ROUNDED_VECTORS
    assert 1 - (bare.vectors * whole).sum(1).mean() > 4 * ROUNDED_VECTORS
    assert found.per_second > 0


@needs_llamacpp
def test_a_file_that_is_none_is_one_error(written, tmp_path):
    (tmp_path / "base.gguf").write_text("no model")
    with pytest.raises(RuntimeError, match=r"llama\.cpp failed: "):
        llamacpp.embed(tmp_path / "base.gguf", TEXTS)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install xllamacpp"):
        llamacpp.embed("base.gguf", TEXTS)
