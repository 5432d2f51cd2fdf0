import math

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from hypothesis import given, settings
from hypothesis import strategies as st

from coalora_lib.configuration import SCALE_DTYPES, LayerConfig
from coalora_lib.quantization import normal_float, quantize
from coalora_lib.quantization.blockwise import nearest_level

FINE = LayerConfig(8, 8, "fp32", 16, 16)
any_choice = st.sampled_from(LayerConfig.space())
any_shape = st.lists(st.integers(1, 40), min_size=1, max_size=3)


def by_definition(weight, config):
    """The quantizer of the QLoRA and LQ-LoRA papers, one block at a time, for whole groups."""
    levels = normal_float(config.weight_bits)
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


@pytest.mark.parametrize("choice", range(0, 432, 29))
def test_equals_the_definition(choice):
    config = LayerConfig.space()[choice]
    weight = torch.randn(64, 512)
    torch.testing.assert_close(
        quantize(weight, config).dequantize(), by_definition(weight, config), atol=1e-6, rtol=1e-6
    )


def test_agrees_with_bitsandbytes_where_scales_are_nearly_exact():
    weight = torch.randn(128, 256)
    theirs = dequantize_4bit(*quantize_4bit(weight, blocksize=64, quant_type="nf4"))
    ours = quantize(weight, LayerConfig(4, 8, "fp32", 64, 16)).dequantize()
    close = (ours - theirs).abs() < 0.01 * weight.abs().max()
    assert close.double().mean() > 0.98


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_nearest_level_is_brute_force_with_ties_to_the_lower(bits):
    levels = normal_float(bits)
    middles = (levels[1:] + levels[:-1]) / 2
    up, down = torch.tensor(2.0), torch.tensor(-2.0)
    beside = [torch.nextafter(middles, up), torch.nextafter(middles, down)]
    values = torch.cat([torch.randn(20_000) / 2, middles, *beside, torch.linspace(-1, 1, 4097)])
    assert torch.equal(nearest_level(values, levels), torch.bucketize(values, middles))
    distance = (values.double()[:, None] - levels.double()).abs()
    chosen = distance.gather(1, nearest_level(values, levels)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distance.amin(1), atol=1e-7, rtol=0)


@settings(max_examples=60, deadline=None)
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
    assert quantized.codes.long().max() < 2**config.weight_bits
    blocks = math.ceil(weight.numel() / config.block_size)
    assert quantized.codes.shape == (blocks, config.block_size)


@pytest.mark.parametrize("choice", range(0, 432, 37))
def test_storage_is_the_formula_up_to_the_offset(choice):
    config = LayerConfig.space()[choice]
    weight = torch.randn(64, 256)  # one whole second-level group of every size
    stored = quantize(weight, config).bits_per_parameter
    assert stored == pytest.approx(config.bits_per_parameter + 32 / weight.numel(), abs=1e-12)


def test_error_falls_with_the_bits_of_the_codes():
    weight = torch.randn(64, 256)
    errors = [
        (quantize(weight, LayerConfig(bits, 8, "fp32", 64, 256)).dequantize() - weight).norm()
        for bits in (2, 3, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.25], ids=["zeros", "ones", "negative"])
def test_constant_tensors_survive(value):
    weight = torch.full((50,), value)
    # A positive constant is at its block's scale, a level; a negative one as well.
    torch.testing.assert_close(quantize(weight, FINE).dequantize(), weight)


def test_an_all_zero_block_stays_zero():
    weight = torch.randn(4, 16)
    weight[1] = 0
    assert (quantize(weight, LayerConfig(2, 2, "bf16", 16, 16)).dequantize()[1] == 0).all()


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.ones(3, dtype=torch.int64), TypeError, "int64"),
        (torch.empty(0, 3), ValueError, r"shape \(0, 3\)"),
        (torch.tensor([1.0, torch.nan]), ValueError, "NaN or an infinity"),
        (torch.tensor([1.0, -torch.inf]), ValueError, "NaN or an infinity"),
    ],
    ids=["integers", "empty", "nan", "infinity"],
)
def test_what_cannot_be_quantized_is_refused(weight, error, message):
    with pytest.raises(error, match=message):
        quantize(weight, FINE)
