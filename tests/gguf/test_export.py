"""What is written for llama.cpp, read back by transformers' and gguf's own readers."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from coalora_lib.adapter import CoaLora
from coalora_lib.allocation import Constraints
from coalora_lib.gguf.vocabulary import vocabulary_of
from coalora_lib.packaged import MINILM
from coalora_lib.spaces import GGUF
from coalora_lib.spaces.gguf import TYPES
from tests.conftest import tiny
from tests.gguf.models import MODELS, byte_level, made, mixed, sentencepiece, wordpiece

CAUSAL = [kind for kind in MODELS if kind != "bert"]


@pytest.mark.parametrize("kind", CAUSAL)
def test_transformers_reads_exactly_what_is_computed_with(kind, tmp_path):
    model, tokenizer = made(kind)
    model.set_configuration(mixed(model))
    assert len({choice.type for choice in model.configuration}) > len(TYPES) - 4
    model.export_gguf(tmp_path / "out", tokenizer=tokenizer, embedding="F32")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="base.gguf")
    for name, layer in model.layers.quantized.items():
        assert torch.equal(read.get_submodule(name).weight, layer.weight), name
    base = model.get_base_model()
    assert torch.equal(read.model.embed_tokens.weight, base.model.embed_tokens.weight)
    assert torch.equal(read.lm_head.weight, base.lm_head.weight)
    assert torch.equal(read.model.norm.weight, base.model.norm.weight)
    assert read.config.rope_parameters["rope_theta"] == 500


def test_a_bert_is_what_is_computed_with(tmp_path):
    """transformers reads no BERT, gguf reads any."""
    model, tokenizer = made("bert")
    model.set_configuration(5.0)
    model.export_gguf(tmp_path / "out", tokenizer=tokenizer)
    reader = gguf.GGUFReader(tmp_path / "out" / "base.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    layer = model.layers.quantized["encoder.layer.1.output.dense"]
    stored = tensors["blk.1.ffn_down.weight"]
    assert stored.tensor_type.name == layer.choice.type
    assert np.array_equal(gguf.dequantize(stored.data, stored.tensor_type), layer.weight.numpy())
    for name, tensor in tensors.items():
        if len(tensor.shape) == 1 or name in ("position_embd.weight", "token_types.weight"):
            assert tensor.tensor_type.name == "F32", name
    assert tensors["token_embd.weight"].tensor_type.name == "F16"
    assert not any("pooler" in name for name in tensors)


def test_the_packaged_model_is_written_with_its_own_tokenizer(packaged, tmp_path):
    model, tokenizer = made("bert")
    model.get_base_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    packaged(tmp_path / "base")
    model.get_base_model().name_or_path = MINILM
    model.check_gguf(tmp_path / "out")


def test_an_adapter_has_its_scaling_in_it_and_is_of_no_layer_twice(tmp_path):
    model, tokenizer = made("bert")
    model.export_gguf(tmp_path / "out", 5.0, tokenizer)
    reader = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    assert reader.get_field("adapter.lora.alpha").contents() == 0
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == 2 * len(model.layer_names)
    factors = model.adapted_factors(model.resolve(5.0))[-1]
    second, first = (tensors[f"blk.1.ffn_down.weight.lora_{part}"] for part in "ba")
    expected = model.layers.scaling * (factors.l1 @ factors.l2).detach()
    np.testing.assert_allclose(second @ first, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "embedding"), [("bert", "F16"), ("bert", "Q8_0"), ("llama", "Q8_0")]
)
def test_a_file_has_the_size_that_was_allocated_to(kind, embedding, tmp_path):
    model, tokenizer = made(kind)
    with pytest.raises(ValueError, match=r"of 9 on 'bytes of base\.gguf' is not feasi") as refused:
        model.resolve(
            Constraints(limits=[model.gguf_size_limit(9, tokenizer, embedding=embedding)])
        )
    most = int(int(str(refused.value).split()[-1]) * 1.1)
    limit = model.gguf_size_limit(most, tokenizer, embedding=embedding)
    configuration = model.resolve(Constraints(limits=[limit]))
    rows = GGUF.to_rows(configuration)
    model.export_gguf(tmp_path / "out", configuration, tokenizer, embedding=embedding)
    size = (tmp_path / "out" / "base.gguf").stat().st_size
    counted = sum(limit.costs[range(len(rows)), rows])
    assert size <= counted <= most
    # What is counted for biases that a correction might need is not there.
    assert counted - size <= (0 if kind == "bert" else 0.03 * size)


def test_what_cannot_be_exported_is_one_sentence_and_nothing_is_written(tmp_path):
    model, tokenizer = made("bert")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="no configuration is set or given"):
        model.export_gguf(out, tokenizer=tokenizer)
    with pytest.raises(
        ValueError, match=r"embedding='Q4_K' needs rows of a multiple of 256; .* 64"
    ):
        model.export_gguf(out, 5.0, tokenizer, embedding="Q4_K")
    with pytest.raises(ValueError, match=r"embedding='Q9' is not known; allowed: .*Q8_0"):
        model.export_gguf(out, 5.0, tokenizer, embedding="Q9")
    with pytest.raises(ValueError, match="pooling='last' is not known; allowed: mean, cls"):
        model.export_gguf(out, 5.0, tokenizer, pooling="last")
    with pytest.raises(ValueError, match=r"query: .*Q4_K.* is not allowed for the shape"):
        model.export_gguf(out, [GGUF.make_choice("Q4_K")] * len(model.layer_names), tokenizer)
    with pytest.raises(ValueError, match=r"the tokenizer has a token 4.., and the embedding 64"):
        model.export_gguf(out, 5.0, byte_level())
    other = CoaLora.attach(tiny("bert"), space="gguf")
    with pytest.raises(ValueError, match="BertForSequenceClassification cannot be written as GGUF"):
        other.export_gguf(out, 16.0, tokenizer)
    normal = CoaLora.attach(MODELS["bert"](), heads=())
    with pytest.raises(ValueError, match=r"in the space 'nf', which llama\.cpp cannot read"):
        normal.export_gguf(out, 3.0, tokenizer)
    with torch.no_grad():
        model.get_base_model().embeddings.LayerNorm.weight[3] = torch.nan
    with pytest.raises(
        ValueError, match=r"token_embd_norm\.weight: a .* cannot be F32: it holds a N"
    ):
        model.export_gguf(out, mixed(model), tokenizer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hidden_act": "relu"},
            "with hidden_act='relu' cannot be written as GGUF; allowed: 'silu",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type='yarn' cannot be written as GGUF; allowed: 'default', 'linear', 'llama3'",
        ),
    ],
    ids=["activation", "rope"],
)
def test_what_llamacpp_computes_otherwise_is_refused(change, message, tmp_path):
    model, tokenizer = made("llama")
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match=message):
        model.export_gguf(tmp_path / "out", 5.0, tokenizer)


@pytest.mark.parametrize(("corrected", "name"), [(False, "qwen2"), (True, "llama")])
def test_a_qwen2_with_biases_everywhere_is_a_llama_to_llamacpp(corrected, name, tmp_path):
    model, tokenizer = made("qwen2", bias_correction=corrected)
    model.export_gguf(tmp_path / "out", mixed(model), tokenizer)
    for file in ("base.gguf", "adapter.gguf"):
        reader = gguf.GGUFReader(tmp_path / "out" / file)
        assert reader.get_field("general.architecture").contents() == name


def test_nothing_foreign_is_deleted_and_an_own_export_is_replaced(tmp_path):
    model, tokenizer = made("bert")
    out = model.export_gguf(tmp_path / "out", 5.0, tokenizer)
    names = sorted(path.name for path in out.iterdir())
    assert names == ["README.md", "adapter.gguf", "base.gguf", "coalora_gguf.json"]
    before = (out / "base.gguf").stat().st_size
    model.export_gguf(out, 8.0, tokenizer)
    assert (out / "base.gguf").stat().st_size > before
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"also holds thesis\.txt"):
        model.export_gguf(out, 5.0, tokenizer)
    assert (out / "thesis.txt").read_text() == "years of work"
    card = (out / "README.md").read_text()
    assert "llama-embedding -m base.gguf --lora adapter.gguf --pooling mean" in card
    assert "| encoder.layer.0.attention.self.query |" in card


@pytest.mark.parametrize("tokenizer", [wordpiece, byte_level, sentencepiece])
def test_each_row_of_an_embedding_has_a_token(tokenizer):
    made = tokenizer()
    found = vocabulary_of(made, 450)
    assert len(found.tokens) == len(found.types) == 450
    assert found.types[-1] == gguf.TokenType.UNUSED
    assert len(set(found.tokens)) == 450


def test_other_tokenizers_are_refused():
    from tokenizers import Tokenizer, models

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(ValueError, match="of the kind WordLevel cannot be written as GGUF"):
        vocabulary_of(words, 10)
    made = byte_level()
    made.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(ValueError, match=r"splits texts is not a known one of llama\.cpp"):
        vocabulary_of(made, 450)
