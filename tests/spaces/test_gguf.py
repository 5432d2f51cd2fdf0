"""GGUF's types go all the way: bytes as llama.cpp's, allocation, training, search, files."""

import gguf
import libgguf
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from coalora_lib.allocation import Constraints, allocate
from coalora_lib.search import STRATEGIES
from coalora_lib.spaces import GGUF, mean_bits_cost, random_at_bits, random_configuration
from coalora_lib.spaces.gguf import BLOCKS, TYPES, stored
from coalora_lib.training import TrainingPlan
from tests.conftest import NO_DROPOUT, SIZES
from tests.spaces.whole import (
    attached,
    check_allocation,
    check_errors,
    check_files,
    check_layers,
    check_training,
    everywhere_allowed,
)

#: Rows of 64 take blocks of 32, of 256 all types, of 40 only F16.
SHAPES = [(8, 64), (4, 256), (6, 40)]
PLAN = TrainingPlan(steps=4, batch_size=4, configurations_per_step=1)
#: What gguf quantizes too, in Python.
IN_PYTHON = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "F16")


def base():
    """A BERT whose layers differ in what they can take."""
    torch.manual_seed(0)
    sizes = SIZES | NO_DROPOUT | {"hidden_size": 64, "intermediate_size": 256}
    return BertForSequenceClassification(BertConfig(**sizes))


def outlying(*shape):
    """Normal numbers, some of them far out."""
    made = torch.randn(shape)
    made.flatten()[::37] *= 8
    return made


def test_sizes_are_those_of_gguf():
    for name, block in BLOCKS.items():
        assert block == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]], name


@pytest.mark.parametrize("name", TYPES)
def test_bytes_and_weights_are_those_of_llamacpp(name):
    weight = outlying(16, 512)
    kind = gguf.GGMLQuantizationType[name]
    found = stored(weight, name)
    choice = GGUF.make_choice(name)
    assert found.nbytes == GGUF.nbytes(choice, (16, 512)) == 16 * libgguf.row_size(kind, 512)
    assert found.nbytes * 8 == GGUF.bits_per_parameter(choice) * 16 * 512
    if name in IN_PYTHON:
        other = gguf.quantize(weight.numpy(), kind)
        assert np.array_equal(other.view(np.uint8), found.data.numpy())
    restored = found.dequantize()
    np.testing.assert_array_equal(restored.numpy(), gguf.dequantize(found.data.numpy(), kind))
    assert restored.dtype == weight.dtype
    assert (restored - weight).norm() < 0.4 * weight.norm()


def test_what_a_row_takes_is_one_stretch_of_the_types():
    """Or a walk, which moves from one to the next, could not pass."""
    for columns in (1, 32, 48, 64, 384, 256, 1536):
        mask = GGUF.mask((8, columns)).tolist()
        assert mask[-1]
        assert mask == sorted(mask), columns
    assert GGUF.finest((8, 64)).type == "F16"


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.zeros(4, 33), ValueError, r"shape \(4, 33\) cannot be Q4_0: its rows must be .* 32"),
        (torch.full((4, 32), torch.nan), ValueError, r"cannot be Q4_0: it holds a NaN"),
        (torch.full((4, 32), 1e5), ValueError, r"it holds a NaN, or a number above 65504"),
        (
            torch.zeros(4, 32, dtype=torch.int8),
            TypeError,
            r"floating-point tensor, not torch\.int8",
        ),
        (torch.zeros(()), ValueError, r"shape \(\) cannot be Q4_0"),
    ],
    ids=["row", "nan", "large", "whole numbers", "no row"],
)
def test_what_cannot_be_quantized_is_refused(weight, error, message):
    with pytest.raises(error, match=message):
        GGUF.quantize(weight, GGUF.make_choice("Q4_0"))


def test_a_missing_package_is_one_sentence(monkeypatch):
    def absent(name, *_):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("coalora_lib.spaces.gguf.import_module", absent)
    assert GGUF.bits_table().min() == 2.625
    with pytest.raises(
        ModuleNotFoundError, match=r"package libgguf: pip install 'coalora-lib\[ggu"
    ):
        stored(torch.zeros(4, 32), "Q4_0")


def test_errors_and_allocation_are_exact_and_mind_what_is_allowed():
    weights = {str(i): outlying(*shape) for i, shape in enumerate(SHAPES)}
    errors = check_errors(GGUF, weights)
    sizes = [weight.numel() for weight in weights.values()]
    check_allocation(GGUF, errors, SHAPES, (6.5, 8.0, 10.0))
    most = sum(sizes)
    found = allocate(errors, SHAPES, space="gguf", max_bytes=most, allowed={"type": TYPES[6:]})
    assert found.nbytes <= most
    assert {choice.type for choice in found.configs} <= set(TYPES[6:])
    with pytest.raises(ValueError, match=r"layer 2 of shape \(6, 40\) has no allowed choice"):
        allocate(errors, SHAPES, space="gguf", allowed={"type": ("Q4_0", "Q8_0")})


def test_errors_of_a_sample_of_rows_are_near():
    weight = outlying(512, 256)
    ((size, compute),) = GGUF.error_parts(weight, sample=1 / 8)
    assert size == weight.numel()
    relative = compute() / GGUF.errors(weight) - 1
    assert relative.abs().max() < 0.15
    ((_, whole),) = GGUF.error_parts(weight[:20], sample=1 / 8)
    assert torch.equal(whole(), GGUF.errors(weight[:20]))


def test_random_configurations_are_allowed():
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES[:2] * 50
    for drawn in (
        random_configuration(shapes, generator, "gguf"),
        random_at_bits(shapes, 5.2, generator, "gguf"),
    ):
        assert everywhere_allowed(GGUF, drawn, shapes)
        assert len({choice.type for choice in drawn}) > 8
    cost = mean_bits_cost("gguf", shapes)
    assert cost(GGUF.to_flat([drawn])).item() == pytest.approx(GGUF.mean_bits(drawn, shapes))


def test_random_configurations_may_lie_below_what_some_layers_can_have():
    """The mean is over all weights: rows of 384 take 4.25 bits at least, longer ones make up."""
    shapes = [(384, 384)] * 40 + [(384, 1536)] * 40
    generator = torch.Generator().manual_seed(0)
    found = [
        GGUF.mean_bits(random_at_bits(shapes, 3.6, generator, "gguf"), shapes) for _ in range(20)
    ]
    assert sum(found) / len(found) == pytest.approx(3.6, abs=0.1)
    with pytest.raises(ValueError, match=r"bits=2\.9 must lie between the least, 2\.9500, and"):
        random_at_bits(shapes, 2.9, generator, "gguf")


def test_a_model_takes_budgets_constraints_and_names_what_is_not_allowed():
    model = attached(GGUF, base())
    model.set_configuration(5.0)
    assert model.bits <= 5.0
    assert everywhere_allowed(GGUF, model.configuration, model.shapes)
    check_layers(model, base())
    model.set_configuration(Constraints(allowed={"type": ("Q8_0",)}))
    assert {choice.type for choice in model.configuration} == {"Q8_0"}
    with pytest.raises(ValueError, match=r"query: .*type='Q6_K'.* is not allowed for the shape"):
        model.set_configuration([GGUF.choices[0]] * 12)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "local search"])
def test_training_with_the_search_between_and_a_checkpoint(examples, tmp_path, strategy):
    check_training(GGUF, base, (4.8, 6.0), PLAN, examples, tmp_path, strategy)


@pytest.mark.parametrize("options", [{}, {"start": "residual", "frozen_rank": 3}], ids=str)
def test_it_is_saved_read_back_and_exported(tmp_path, options):
    check_files(GGUF, base, (4.8, 6.0), options, tmp_path, "GgufWeight")
