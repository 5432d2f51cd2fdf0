"""Codes for a layer's inputs: against a naive loop, and beside the nearest ones."""

import pytest
import torch

from coalora_lib.calibration import ridge_factor
from coalora_lib.quantization import BlockwiseChoice, quantize
from coalora_lib.quantization.blocks import restored_scales
from coalora_lib.quantization.codebooks import code_book
from coalora_lib.quantization.compensation import GROUP, quantize_for_inputs
from coalora_lib.quantization.packing import unpack
from coalora_lib.spaces import get_space

BOOKS = pytest.mark.parametrize("book", ["nf", "int"])
COARSE = BlockwiseChoice(3, 8, "fp32", 32, 64)


def second_moment(inputs, dtype=torch.float64):
    """Of inputs that go together and are of unlike size."""
    drawn = torch.randn(4 * inputs, inputs, dtype=dtype)
    mixed = drawn @ torch.randn(inputs, inputs, dtype=dtype) / inputs**0.5
    mixed *= torch.linspace(0.2, 2, inputs, dtype=dtype)
    return mixed.T @ mixed / len(mixed)


def harm(weight, quantized, second):
    """E || (W - W^) x ||^2 of (out, in)."""
    lost = (weight - quantized.dequantize(weight.dtype)).double()
    return (lost @ second.double() @ lost.T).trace().item()


def scales_of(quantized):
    """What is read back as each weight's scale, block by block."""
    choice, numbers = quantized.choice, quantized.shape.numel()
    blocks = -(-numbers // choice.block_size)
    groups = quantized.group_scales.float().repeat_interleave(choice.scale_block_size)[:blocks]
    second = unpack(quantized.scale_codes, choice.scale_bits)[:blocks].float()
    scales = restored_scales(second, groups, quantized.offset, 2**choice.scale_bits - 1)
    return scales.repeat_interleave(choice.block_size)[:numbers].view(quantized.shape)


def by_definition(weight, choice, second):
    """OBQ in a fixed order: one input at a time, and the inverse of H without it by elimination."""
    levels = code_book(choice.code_book, choice.weight_bits).double()
    left, scales = weight.double(), scales_of(quantize(weight, choice)).double()
    inverse, found = torch.linalg.inv(second.double()), torch.empty_like(left)
    for j in range(left.shape[1]):
        distances = (left[:, j, None] / scales[:, j, None] - levels).abs()
        found[:, j] = levels[distances.argmin(1)] * scales[:, j]
        error = (left[:, j] - found[:, j]) / inverse[j, j]
        left = left - error[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return found


@BOOKS
@pytest.mark.parametrize("inputs_first", [False, True], ids=["out-in", "in-out"])
@pytest.mark.parametrize("shape", [(48, 64), (7, 13), (3, 200), (33, 5), (1, 1)])
def test_for_inputs_that_do_not_go_together_they_are_the_nearest(shape, inputs_first, book):
    """With the last block padded, in all but the first shape."""
    weight, factor = torch.randn(shape), torch.eye(shape[0 if inputs_first else 1])
    for choice in get_space(book).choices[::37]:
        nearest = quantize(weight, choice)
        found = quantize_for_inputs(weight, choice, factor, inputs_first)
        assert (found.choice, found.shape, found.dtype) == (choice, weight.shape, weight.dtype)
        for (name, one), (_, other) in zip(found.tensors(), nearest.tensors(), strict=True):
            assert torch.equal(one, other), name


@BOOKS
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_equals_the_definition(bits, book):
    choice = BlockwiseChoice(bits, 8, "fp32", 32, 64, book)
    weight, second = torch.randn(20, 2 * GROUP + 44), second_moment(2 * GROUP + 44)
    expected = by_definition(weight, choice, second)
    factor = torch.linalg.cholesky(second)
    found = quantize_for_inputs(weight, choice, factor)
    torch.testing.assert_close(found.dequantize(torch.float64), expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(found.codes, quantize(weight, choice).codes)


def test_inputs_first_is_the_transposed_weight():
    """Where every block, of rows or of columns, has the scale 1."""
    weight, second = 2 * torch.rand(32, 32) - 1, second_moment(32)
    weight[::16] = weight[:, ::16] = 1
    factor = torch.linalg.cholesky(second)
    choice = BlockwiseChoice(3, 8, "fp32", 16, 16)
    one = quantize_for_inputs(weight, choice, factor).dequantize()
    other = quantize_for_inputs(weight.T, choice, factor, inputs_first=True)
    assert torch.equal(other.dequantize().T, one)


@BOOKS
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_outputs_are_nearer_at_the_same_bytes_and_scales(bits, book):
    choice = BlockwiseChoice(bits, 4, "bf16", 64, 64, book)
    weight, second = torch.randn(64, 192), second_moment(192, torch.float32)
    found = quantize_for_inputs(weight, choice, ridge_factor(second))
    nearest = quantize(weight, choice)
    assert harm(weight, found, second) < 0.8 * harm(weight, nearest, second)
    assert found.nbytes == nearest.nbytes
    for name in ("scale_codes", "group_scales", "offset"):
        assert torch.equal(getattr(found, name), getattr(nearest, name))


@pytest.mark.parametrize("inputs_first", [False, True], ids=["out-in", "in-out"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_of_the_same_values_gives_the_same_codes(dtype, inputs_first):
    weight, factor = torch.randn(48, 48).bfloat16(), ridge_factor(second_moment(48).float())
    weight = weight.clamp(-4, 4)  # what all of them can hold
    found = quantize_for_inputs(weight.to(dtype), COARSE, factor, inputs_first)
    expected = quantize_for_inputs(weight.float(), COARSE, factor, inputs_first)
    assert torch.equal(found.codes, expected.codes)
    assert found.dequantize().dtype == dtype


@pytest.mark.parametrize("inputs_first", [False, True], ids=["out-in", "in-out"])
def test_weight_and_factor_are_left_as_they_were(inputs_first):
    weight = torch.nn.Parameter(torch.randn(32, 32))
    factor = ridge_factor(second_moment(32).float())
    before = weight.clone(), factor.clone()
    quantize_for_inputs(weight, COARSE, factor, inputs_first)
    assert torch.equal(weight, before[0])
    assert torch.equal(factor, before[1])


def test_an_input_that_is_always_zero_has_its_nearest_codes():
    """Its errors do no harm, and it cannot make up for others."""
    second = second_moment(64).float()
    second[:, 10] = second[10] = 0
    weight = torch.randn(32, 64)
    found = quantize_for_inputs(weight, COARSE, ridge_factor(second)).dequantize()
    assert torch.equal(found[:, 10], quantize(weight, COARSE).dequantize()[:, 10])
    assert torch.isfinite(found).all()


def test_without_any_input_the_codes_are_the_nearest():
    weight = torch.randn(32, 64)
    found = quantize_for_inputs(weight, COARSE, ridge_factor(torch.zeros(64, 64)))
    assert torch.equal(found.codes, quantize(weight, COARSE).codes)


def test_a_block_of_zeros_stays_zero():
    weight, second = torch.randn(32, 64), second_moment(64).float()
    weight[5, :32] = 0
    found = quantize_for_inputs(weight, COARSE, ridge_factor(second)).dequantize()
    assert not found[5, :32].any()
    assert torch.isfinite(found).all()
    nothing = quantize_for_inputs(torch.zeros(32, 64), COARSE, ridge_factor(second))
    assert not nothing.dequantize().any()


@pytest.mark.parametrize(
    ("weight", "factor", "inputs_first", "error", "message"),
    [
        (torch.ones(6, 8), torch.eye(6), False, ValueError, r"\(6, 6\) is not for 8 inputs"),
        (torch.ones(6, 8), torch.eye(8), True, ValueError, r"\(8, 8\) is not for 6 inputs"),
        (torch.ones(6, 8), torch.ones(8), False, ValueError, r"\(8,\) is .* allowed: \(8, 8\)"),
        (torch.ones(8), torch.eye(8), False, ValueError, r"\(8,\) must be a matrix"),
        (torch.tensor(1.0), torch.eye(1), False, ValueError, r"\(\) must be a matrix"),
        (torch.full((6, 8), torch.nan), torch.eye(8), False, ValueError, "holds a NaN"),
        (torch.ones(6, 8).int(), torch.eye(8), False, TypeError, "only floating-point tensors"),
        (torch.ones(6, 8), torch.zeros(8, 8), False, torch.linalg.LinAlgError, "cholesky"),
    ],
    ids=["inputs", "inputs first", "vector", "no matrix", "scalar", "nan", "integers", "singular"],
)
def test_what_does_not_fit_is_refused(weight, factor, inputs_first, error, message):
    with pytest.raises(error, match=message):
        quantize_for_inputs(weight, COARSE, factor, inputs_first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_codes():
    weight, factor = torch.randn(64, 2 * GROUP), torch.linalg.cholesky(second_moment(2 * GROUP))
    found = quantize_for_inputs(weight.cuda(), COARSE, factor.cuda())
    assert torch.equal(found.codes.cpu(), quantize_for_inputs(weight, COARSE, factor).codes)
