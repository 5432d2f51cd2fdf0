"""Frozen terms made for many layers at once, against each layer alone."""

import pytest
import torch

from coalora_lib.adapter import CoaLora, adaptable_layers, together
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.spaces import random_configuration
from coalora_lib.training import input_moments
from tests.conftest import tiny

COARSE = BlockwiseChoice(2, 2, "bf16", 64, 256)
FINE = BlockwiseChoice(8, 8, "fp32", 16, 16)
#: By how much 16 bits of a term round a weight.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


def attached(kind, start, examples, dtype=torch.float32, **options):
    base = tiny(kind).to(dtype)
    if start == "calibrated":
        moments = input_moments(base, adaptable_layers(base), examples, batch_size=7)
        options |= {"bias_correction": True, "mean_inputs": moments.means}
        options["second_moments"] = moments.seconds
    return CoaLora.attach(base, 4, 8, start, adjuster="none", **options)


def some_configuration(model):
    return random_configuration(len(model.layer_names), torch.Generator().manual_seed(3))


def alone(layer, choice):
    """Weight and correction as the layer makes them by itself, from nothing held."""
    layer._cache.clear()
    layer._corrections.clear()
    return layer.under(choice)


def check_against_each_alone(model, configuration):
    dtype = model.layers.quantized[model.layer_names[0]].pretrained.dtype
    near = {"rtol": 0, "atol": TOLERANCE.get(dtype, 1e-5)}
    found = [(layer.weight, layer.correction) for layer in model.layers.quantized.values()]
    for layer, choice, (weight, correction) in zip(
        model.layers.quantized.values(), configuration, found, strict=True
    ):
        other, of_it = alone(layer, choice)
        torch.testing.assert_close(weight, other, **near)
        if of_it is not None:
            torch.testing.assert_close(correction, of_it, **near)


@pytest.fixture
def calls(monkeypatch):
    """Shapes of what is lost, and of the second moments, at each call."""
    seen = []

    def kept(lost, second, rank, mean=None):
        seen.append((tuple(lost.shape), tuple(second.shape)))
        return output_svd(lost, second, rank, mean)

    output_svd = together.output_svd
    monkeypatch.setattr(together, "output_svd", kept)
    return seen


@pytest.mark.parametrize("start", ["calibrated", "residual"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2"])
def test_it_is_each_layer_alone(kind, start, examples):
    model = attached(kind, start, examples)
    configuration = some_configuration(model)
    model.set_configuration(configuration)
    for layer, choice in zip(model.layers.quantized.values(), configuration, strict=True):
        assert not layer.lacks(choice)
        assert torch.equal(layer.weight, layer.packed(choice).restore())
    check_against_each_alone(model, configuration)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_it_is_in_the_dtype_of_the_model(dtype, examples):
    model = attached("bert", "calibrated", examples, dtype)
    model.set_configuration([COARSE] * len(model.layer_names))
    layer = next(iter(model.layers.quantized.values()))
    assert layer.weight.dtype == layer.packed(COARSE).left.dtype == dtype
    check_against_each_alone(model, model.configuration)
    model.to(torch.float32)
    model.set_configuration(some_configuration(model))
    assert layer.weight.dtype == torch.float32
    check_against_each_alone(model, model.configuration)


def test_layers_of_one_shape_take_one_call_and_share_their_moment(calls, examples):
    model = attached("bert", "calibrated", examples)
    model.set_configuration([COARSE] * len(model.layer_names))
    assert sorted(calls) == [
        ((2, 1, 32, 32), (2, 1, 32, 32)),
        ((2, 1, 32, 48), (2, 1, 48, 48)),
        ((2, 1, 48, 32), (2, 1, 32, 32)),
        ((2, 3, 32, 32), (2, 1, 32, 32)),
    ]


def test_pieces_bound_the_memory_and_change_nothing(calls, examples, monkeypatch):
    model = attached("bert", "calibrated", examples)
    monkeypatch.setattr(together, "PIECE", 1)
    model.set_configuration([COARSE] * len(model.layer_names))
    assert len(calls) == 8
    assert {lost[0] for lost, _ in calls} == {1}
    check_against_each_alone(model, model.configuration)


def test_only_what_is_not_held_is_made(calls, examples):
    model = attached("bert", "calibrated", examples)
    before = [COARSE] * len(model.layer_names)
    model.set_configuration(before)
    calls.clear()
    model.set_configuration([FINE, *before[1:]])
    assert [lost for lost, _ in calls] == [(1, 1, 32, 32)]
    model.set_configuration(before)
    model.layers.packed([FINE, *before[1:]])
    assert len(calls) == 1


def test_a_cache_of_no_size_makes_each_term_once(calls, examples, monkeypatch):
    model = attached("bert", "calibrated", examples, cache_bytes=0)
    refused = pytest.fail
    monkeypatch.setattr(type(model.layers.quantized[model.layer_names[0]]), "_frozen_term", refused)
    configuration = [COARSE] * len(model.layer_names)
    model.set_configuration(configuration)
    assert len(model.layers.packed(configuration)) == 12
    assert len(calls) == 8
    assert model.layers.cache.held == 0


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_what_is_held_is_all_that_is_kept(kind, examples):
    model = attached(kind, "calibrated", examples)
    for packed in model.layers.packed([COARSE] * len(model.layer_names)).values():
        for part in (packed.left, packed.right):
            assert part.untyped_storage().nbytes() == part.nbytes


def test_static_memory_is_given_the_same(examples):
    model = attached("bert", "calibrated", examples)
    configuration = some_configuration(model)
    with model.layers.static_memory():
        model.set_configuration(configuration)
        found = [(la.weight.clone(), la.correction) for la in model.layers.quantized.values()]
    model.layers.cache.clear()
    model.set_configuration(configuration)
    for layer, (weight, correction) in zip(model.layers.quantized.values(), found, strict=True):
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer.correction, correction)
