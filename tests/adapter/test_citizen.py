"""A CoaLora is used as any transformers or PEFT model is."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from transformers.utils.generic import find_labels

from coalora_lib.adapter import CoaLora
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.spaces import spaces
from tests.adapter.test_model import fill_lora
from tests.conftest import TINY, some_means, tiny
from tests.spaces.toy import ROUNDING

COARSE = BlockwiseChoice(2, 2, "bf16", 64, 256)
FINE = BlockwiseChoice(8, 8, "fp32", 16, 16)
IDS = torch.arange(6, 26).reshape(2, 10)
#: The third argument of the transformers model's forward.
THIRD = {"bert": "token_type_ids", "llama": "position_ids"}

each_kind = pytest.mark.parametrize("kind", ["bert", "llama"])


def attached(kind, **options):
    """Trained, so to say: every part that is trained has values of its own."""
    model = CoaLora.attach(tiny(kind), rank=4, alpha=8, **options)
    fill_lora(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def corrected(kind, **options):
    return attached(
        kind, bias_correction=True, mean_inputs=some_means(tiny(kind)), output_bias=True, **options
    )


def mixed(model):
    layers = len(model.layer_names)
    return [COARSE if layer % 3 else FINE for layer in range(layers)]


@torch.no_grad()
def logits(model, ids=IDS, *arguments, **batch):
    return model(ids, *arguments, **batch).logits


@each_kind
def test_positional_arguments_are_the_transformers_models(kind):
    model = attached(kind)
    model.set_configuration(mixed(model))
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    found = logits(model, IDS, mask)
    assert torch.equal(found, logits(model, attention_mask=mask))
    assert not torch.equal(found, logits(model))
    third = torch.ones_like(IDS) if kind == "bert" else torch.arange(10)[None] * 2
    named = {"attention_mask": mask, THIRD[kind]: third}
    with_third = logits(model, IDS, mask, third)
    assert torch.equal(with_third, logits(model, **named))
    assert not torch.equal(with_third, found)


@each_kind
def test_the_signature_is_the_transformers_models_in_copies_too(kind):
    model = attached(kind)
    expected = inspect.signature(tiny(kind).forward)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        assert inspect.signature(each.forward) == expected
    assert find_labels(CoaLora) == ["labels"]
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert logits(twin).abs().max() < logits(model).abs().max()


@each_kind
def test_a_model_saved_by_pickle_is_the_same_model(kind, tmp_path):
    model = attached(kind)
    model.set_configuration(mixed(model))
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert inspect.signature(again.forward) == inspect.signature(model.forward)
    assert torch.equal(logits(again), logits(model))
    for each in (again, model):
        each.set_configuration([COARSE] * len(model.layer_names))
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(RuntimeError, match=r"call CoaLora\.save_pretrained"):
        again.model.save_pretrained(tmp_path / "inner")


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_in_another_dtype_a_model_computes_with_what_it_exports(kind, dtype):
    model = attached(kind)
    model.set_configuration(mixed(model))
    here = model.to(dtype).layers.quantized
    now = {name: layer.weight for name, layer in here.items()}
    assert {each.dtype for each in now.values()} == {dtype}
    found = logits(model)
    for name, packed in model.layers.packed(model.configuration).items():
        assert torch.equal(packed.restore(), now[name])
    model.set_configuration(model.configuration)
    assert torch.equal(logits(model), found)
    if dtype != torch.float16:  # on a processor not all of its kernels are there
        close = {torch.bfloat16: 0.05, torch.float64: 1e-6}[dtype]
        torch.testing.assert_close(logits(model.freeze()), found, atol=close, rtol=0)


@pytest.mark.parametrize("space", [*spaces(), ROUNDING])
def test_a_model_of_any_space_is_pickled_with_its_choices(space):
    model = CoaLora.attach(tiny("llama"), rank=4, alpha=8, space=space).eval()
    configuration = [model.space.finest(shape) for shape in model.shapes]
    model.set_configuration(configuration)
    again, sent = pickle.loads(pickle.dumps((model, configuration)))
    assert again.configuration == configuration == sent
    assert {type(choice) for choice in sent} == {type(choice) for choice in configuration}
    assert torch.equal(logits(again), logits(model))
    other = [model.space.choices[0]] * len(configuration)
    if all(map(model.space.allowed, other, model.shapes)):
        again.set_configuration(other)
        model.set_configuration(other)
        assert torch.equal(logits(again), logits(model))


def test_attributes_are_the_transformers_models():
    model, base = attached("llama"), tiny("llama")
    assert model.dtype == torch.float32
    assert model.device.type == "cpu"
    assert model.config.vocab_size == 64
    assert model.get_input_embeddings() is model.get_base_model().model.embed_tokens
    assert model.get_output_embeddings() is model.get_base_model().lm_head
    assert model.main_input_name == "input_ids"
    assert model.loss_type == base.loss_type
    assert model.can_generate()
    assert not hasattr(model, "no_such_attribute")
    assert model.double().dtype == torch.float64


@each_kind
def test_parameters_are_counted_with_the_weights_that_follow_the_configuration(kind, capsys):
    base = tiny(kind).num_parameters()
    embeddings = base - tiny(kind).num_parameters(exclude_embeddings=True)
    model = attached(kind)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = model.num_parameters()
    assert model.num_parameters(only_trainable=True) == trained
    assert total == base + trained
    model.set_configuration(mixed(model))
    assert model.num_parameters() == total
    assert total - model.num_parameters(exclude_embeddings=True) >= embeddings > 0
    model.print_trainable_parameters()
    assert f"trainable params: {trained:,d} || all params: {total:,d}" in capsys.readouterr().out


GENERATION = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 2},
    "static-cache": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("options", GENERATION.values(), ids=GENERATION)
def test_generate_is_that_of_the_merged_model_under_each_configuration(kind, options):
    model = attached(kind)
    options = options | {"max_new_tokens": 6, "pad_token_id": 0}
    found = []
    for choice in (COARSE, FINE, COARSE):
        model.set_configuration([choice] * len(model.layer_names))
        torch.manual_seed(0)
        found.append(model.generate(IDS, **options))
        torch.manual_seed(0)
        assert torch.equal(found[-1], model.merge().generate(IDS, **options))
    assert torch.equal(found[0], found[2])
    model.set_configuration([COARSE] * len(model.layer_names))
    torch.manual_seed(0)
    assert torch.equal(found[0], model.generate(inputs=IDS, use_cache=False, **options))


@pytest.mark.parametrize("kind", TINY)
def test_without_the_adapter_the_quantized_weights_are_left(kind):
    model = attached(kind)
    model.set_configuration(mixed(model))
    plain = tiny(kind).eval()
    for name, layer in model.layers.quantized.items():
        plain.get_submodule(name).weight.data = layer.weight
    before = logits(model)
    needed = [parameter.requires_grad for parameter in model.parameters()]
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(plain), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(before, logits(plain))
    assert torch.equal(logits(model), before)
    assert [parameter.requires_grad for parameter in model.parameters()] == needed


def test_without_the_adapter_corrections_stay_and_what_is_frozen_stays_frozen():
    model = corrected("bert")
    model.set_configuration(mixed(model))
    layer = next(iter(model.layers.quantized.values()))
    assert layer.correction.abs().max() > 0
    inputs = torch.randn(3, layer.in_features)
    lora = model.get_base_model().get_submodule(model.layer_names[0])
    with model.disable_adapter():
        assert torch.equal(lora(inputs), layer(inputs))
    with pytest.raises(KeyError), model.disable_adapter():
        raise KeyError
    assert not torch.allclose(lora(inputs), layer(inputs))
    bank = attached("bert", adjuster="bank")
    with bank.disable_adapter():
        pass
    assert not any(own.l1.requires_grad for own in bank.layers.factors())


def test_compiled_it_follows_the_configuration():
    model = attached("bert")
    compiled = torch.compile(model, backend="aot_eager")
    for choice in (COARSE, FINE, COARSE):
        model.set_configuration([choice] * len(model.layer_names))
        expected = logits(model)
        torch.testing.assert_close(logits(compiled), expected, atol=1e-5, rtol=1e-5)
