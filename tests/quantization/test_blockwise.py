import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from hypothesis import given, settings
from hypothesis import strategies as st

from coalora_lib.quantization import BlockwiseChoice, quantize
from coalora_lib.quantization.choices import SCALE_DTYPES
from coalora_lib.quantization.codebooks import code_book
from coalora_lib.quantization.packing import unpack
from coalora_lib.spaces import INTEGER, NORMAL_FLOAT, get_space

FINE = BlockwiseChoice(8, 8, "fp32", 16, 16)
any_choice = st.sampled_from(NORMAL_FLOAT.choices + INTEGER.choices)
each_space = pytest.mark.parametrize("space", ["nf", "int"])
any_shape = st.lists(st.integers(1, 40), min_size=1, max_size=3)


def by_definition(weight, config):
    """The quantizer of the QLoRA and LQ-LoRA papers, one block at a time, for whole groups."""
    levels = code_book(config.code_book, config.weight_bits)
    blocks = weight.reshape(-1, config.block_size)
    scales = blocks.abs().amax(1)
    offset, top = scales.min(), 2**config.scale_bits - 1
    restored = []
    for start in range(0, len(blocks), config.scale_block_size):
        group = scales[start : start + config.scale_block_size] - offset
        largest = group.max().to(SCALE_DTYPES[config.scale_dtype]).float()
        codes = (group * top / largest).round().clamp(max=top)
        for block, code in zip(blocks[start:], codes, strict=False):
            scale = offset + code * largest / top
            distance = (block[:, None] / scale - levels).abs()
            restored.append(levels[distance.argmin(1)] * scale)
    return torch.cat(restored).reshape(weight.shape)


@each_space
@pytest.mark.parametrize("choice", range(0, 432, 29))
def test_equals_the_definition(choice, space):
    config = get_space(space).choices[choice]
    weight = torch.randn(64, 512)
    torch.testing.assert_close(
        quantize(weight, config).dequantize(),
        by_definition(weight, config),
        atol=1e-6,
        rtol=1e-6,
    )


def test_codes_are_bitsandbytes_where_scales_are_exact():
    """One block of 64, whose scale is m itself: nothing is lost to the second level."""
    for _ in range(50):
        weight = torch.randn(64)
        packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
        ours = quantize(weight, BlockwiseChoice(4, 8, "fp32", 64, 16))
        pairs = packed.flatten()
        theirs = torch.stack([pairs >> 4, pairs & 15], dim=1).flatten()  # high half first
        assert torch.equal(unpack(ours.codes, 4), theirs)
        torch.testing.assert_close(
            ours.dequantize(), dequantize_4bit(packed, state)[0], atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "double-quantized"])
def test_agrees_with_bitsandbytes_up_to_the_rounding_of_scales(nested):
    """Their second level is another one (dynamic 8-bit codes around the mean), ours is linear."""
    weight = torch.randn(512, 256)
    theirs = dequantize_4bit(
        *quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=nested)
    )
    ours = quantize(weight, BlockwiseChoice(4, 8, "fp32", 64, 16)).dequantize()
    close = (ours - theirs).abs() < 0.01 * weight.abs().max()
    assert close.double().mean() > 0.98
    torch.testing.assert_close((ours - weight).norm(), (theirs - weight).norm(), rtol=0.01, atol=0)


@settings(max_examples=80, deadline=None)
@given(
    any_shape,
    any_choice,
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_any_shape_and_dtype(shape, config, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    quantized = quantize(weight, config)
    restored = quantized.dequantize()
    assert restored.shape == weight.shape
    assert restored.dtype == dtype
    assert torch.isfinite(restored).all()
    assert quantized.nbytes == config.nbytes(weight.numel())
    assert quantized.dequantize(torch.float64).dtype == torch.float64


@settings(max_examples=40, deadline=None)
@given(any_choice)
def test_quantizing_twice_changes_little(config):
    """Not idempotent to the bit: the restored maxima are other scales. Its error is no larger."""
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    once = quantize(weight, config).dequantize()
    twice = quantize(once, config).dequantize()
    assert (twice - once).norm() <= 1.05 * (once - weight).norm()


def test_quantizing_twice_is_exact_where_scales_are():
    """Every block's maximum is 1: scales are exact, and levels are their own nearest levels."""
    weight = torch.rand(16, 64) * 2 - 1
    weight[:, 0] = 1
    for bits in (2, 3, 4, 8):
        config = BlockwiseChoice(bits, 8, "fp32", 64, 16)
        once = quantize(weight, config).dequantize()
        assert torch.equal(quantize(once, config).dequantize(), once)


@pytest.mark.parametrize("choice", range(0, 432, 37))
def test_storage_is_the_formula_up_to_the_offset(choice):
    config = NORMAL_FLOAT.choices[choice]
    weight = torch.randn(64, 256)  # one whole second-level group of every size
    quantized = quantize(weight, config)
    assert quantized.nbytes == config.bits_per_parameter * weight.numel() / 8 + 4
    assert quantized.bits_per_parameter == 8 * quantized.nbytes / weight.numel()


@each_space
@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_error_falls_with_the_bits_of_the_codes(space, block_size):
    weight = torch.randn(64, 256)
    configs = [BlockwiseChoice(bits, 8, "fp32", block_size, 256, space) for bits in (2, 3, 4, 8)]
    errors = [(quantize(weight, config).dequantize() - weight).norm() for config in configs]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_space
@pytest.mark.parametrize("shape", [(1,), (37, 41), (512, 256)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gpu_stores_what_the_processor_stores(space, shape, dtype):
    weight = torch.randn(shape).to(dtype)
    for config in get_space(space).choices[::7]:
        here = quantize(weight, config)
        there = quantize(weight.cuda(), config)
        for (name, expected), (_, found) in zip(here.tensors(), there.tensors(), strict=True):
            assert torch.equal(expected, found.cpu()), (name, config)
        torch.testing.assert_close(there.dequantize().cpu(), here.dequantize())
    with pytest.raises(ValueError, match="NaN"):
        quantize(torch.tensor([1.0, torch.nan], device="cuda"), FINE)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.25], ids=["zeros", "ones", "negative"])
def test_constant_tensors_survive(value):
    weight = torch.full((50,), value)
    # A positive constant is at its block's scale, a level; a negative one as well.
    torch.testing.assert_close(quantize(weight, FINE).dequantize(), weight)


def test_scales_beyond_half_precision_stay_finite():
    weight = torch.randn(64, 64) * 1e6
    restored = quantize(weight, BlockwiseChoice(4, 8, "fp16", 16, 16)).dequantize()
    assert torch.isfinite(restored).all()


def test_moving_to_the_same_device_changes_nothing():
    quantized = quantize(torch.randn(20, 20), FINE)
    assert torch.equal(quantized.to("cpu").dequantize(), quantized.dequantize())


def test_an_all_zero_block_stays_zero():
    weight = torch.randn(4, 16)
    weight[1] = 0
    assert (quantize(weight, BlockwiseChoice(2, 2, "bf16", 16, 16)).dequantize()[1] == 0).all()


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.ones(3, dtype=torch.int64), TypeError, "int64"),
        (torch.empty(0, 3), ValueError, r"shape \(0, 3\)"),
        (torch.tensor([1.0, torch.nan]), ValueError, "NaN, an infinity"),
        (torch.tensor([1.0, -torch.inf]), ValueError, "NaN, an infinity"),
        (torch.tensor([1.0, 1e300], dtype=torch.float64), ValueError, "beyond float32"),
        ([1.0, 2.0], TypeError, "only tensors are quantized, got list"),
    ],
    ids=["integers", "empty", "nan", "infinity", "too-large", "list"],
)
def test_what_cannot_be_quantized_is_refused(weight, error, message):
    with pytest.raises(error, match=message):
        quantize(weight, FINE)


@pytest.mark.parametrize("choice", [4, None, (4, 8, "fp32", 16, 16)], ids=str)
def test_what_is_no_choice_is_refused(choice):
    with pytest.raises(TypeError, match="is not a BlockwiseChoice"):
        quantize(torch.ones(3), choice)


def test_a_choice_holds_the_fields_own_values():
    choice = BlockwiseChoice(4.0, 8.0, "fp32", 16.0, 16)
    assert choice == BlockwiseChoice(4, 8, "fp32", 16, 16)
    assert [type(value) for value in (choice.weight_bits, choice.block_size)] == [int, int]
    for wrong in (4.5, "4", [4], None):
        with pytest.raises(ValueError, match=r"weight_bits=.* is not a choice"):
            BlockwiseChoice(wrong, 8, "fp32", 16, 16)
