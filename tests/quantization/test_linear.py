"""The product with a packed weight, against the restored one."""

import itertools
from dataclasses import astuple

import pytest
import torch
import torch.nn.functional as F

from coalora_lib.quantization import BlockwiseChoice, quantize
from coalora_lib.quantization.choices import FIELDS
from coalora_lib.quantization.linear import GROUP, GROUPS, _table, linear

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
#: Each choice of bits and of blocks; second levels are mixed among them.
SOME = [
    BlockwiseChoice(bits, *second, block, group)
    for (bits, block), second, group in zip(
        itertools.product(FIELDS["weight_bits"], FIELDS["block_size"]),
        itertools.cycle([(8, "fp32"), (3, "bf16"), (2, "fp16"), (4, "fp32")]),
        itertools.cycle([256, 16, 64]),
        strict=False,
    )
]


def made(choice, shape=(70, 192), rows=(5,), dtype=torch.float32, device="cpu"):
    """A packed weight; inputs, bias and factors for it."""
    weight = quantize(0.05 * torch.randn(shape, device=device), choice)
    sizes = [(*rows, shape[1]), (shape[0],), (shape[0], 3), (3, shape[1])]
    return weight, [torch.randn(size, device=device).to(dtype) for size in sizes]


def product(weight, inputs, *rest):
    return linear(inputs, weight.parts, weight.choice, weight.shape, *rest)


def wanted(weight, inputs, bias=None, left=None, right=None):
    """In float64 throughout, from the weights that the codes stand for."""
    restored = weight.dequantize(torch.float32).double()
    parts = [None if part is None else part.double() for part in (bias, left, right)]
    output = F.linear(inputs.double(), restored, parts[0])
    return output if left is None else output + inputs.double() @ parts[2].T @ parts[1].T


def error(found, right):
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize("choice", SOME)
def test_it_is_the_product_with_the_restored_weight(choice):
    weight, (inputs, *rest) = made(choice, rows=(2, 3))
    torch.testing.assert_close(
        product(weight, inputs, *rest), wanted(weight, inputs, *rest).float()
    )
    torch.testing.assert_close(product(weight, inputs), wanted(weight, inputs).float())


def test_gradients_are_those_of_the_restored_weight():
    weight, given = made(SOME[4])
    found = [part.clone().requires_grad_() for part in given]
    product(weight, *found).square().sum().backward()
    other = [part.double().requires_grad_() for part in given]
    wanted(weight, *other).square().sum().backward()
    for ours, theirs in zip(found, other, strict=True):
        assert error(ours.grad, theirs.grad) < 1e-5


def test_nothing_unpacked_is_kept_for_the_gradient():
    weight, (inputs, *_) = made(SOME[4], shape=(512, 512))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        product(weight, inputs.requires_grad_())
    assert sum(each.nbytes for each in kept) <= weight.nbytes


def test_a_compiler_keeps_it_whole():
    weight, given = made(SOME[4])
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(weight, *given), product(weight, *given))
    for name, arguments in (
        ("linear", (given[0], *weight.parts, weight.shape, *given[1:])),
        ("dequantize", (*weight.parts, weight.shape, torch.float32)),
        ("quantize", (torch.randn(70, 192),)),
    ):
        operator = getattr(torch.ops.coalora, name).default
        torch.library.opcheck(
            operator,
            (*arguments, *astuple(weight.choice)),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("bits", FIELDS["weight_bits"])
def test_an_entry_of_the_table_has_the_levels_of_its_codes_in_their_order(bits):
    table = _table("nf", bits, torch.float16, torch.device("cpu"))
    weight = quantize(torch.randn(8, 32), BlockwiseChoice(bits, 8, "fp32", 32, 256))
    # Little-endian bits of the first codes, as the kernel reads them.
    width = {2: 4, 8: 1}.get(bits, 2)
    stream = int.from_bytes(bytes(weight.codes[:16].tolist()), "little")
    found = table[stream & (2 ** (bits * width) - 1)][:width].float()
    scale = weight.dequantize(torch.float32)[0, :width] / found
    known = scale[found != 0]
    assert len(known) == 0 or torch.allclose(known, known[:1].expand_as(known), rtol=1e-3)


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("scale_dtype", FIELDS["scale_dtype"])
@pytest.mark.parametrize("scale_bits", FIELDS["scale_bits"])
@pytest.mark.parametrize("bits", FIELDS["weight_bits"])
def test_the_kernel_on_every_choice(bits, scale_bits, scale_dtype, dtype):
    """Rows that no program's 32 divide, columns with a tail; all blocks; both code books."""
    rounding = 0.004 if dtype == torch.bfloat16 else 0.0006
    blocks = itertools.product(FIELDS["block_size"], FIELDS["scale_block_size"], ("nf", "int"))
    rows = itertools.cycle([1, 8, 13, 30, 64])
    for block, group, book in blocks:
        choice = BlockwiseChoice(bits, scale_bits, scale_dtype, block, group, book)
        weight, (inputs, *rest) = made(choice, (100, 448), (next(rows),), dtype, "cuda")
        right = wanted(weight, inputs, *rest)
        assert error(product(weight, inputs, *rest), right) < rounding, choice


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4096, 1088), (5000, 384), (33, 96), (32, 11008), (64, 50)])
@pytest.mark.parametrize("rows", [1, 16, GROUP * GROUPS[-1], GROUP * GROUPS[-1] + 1])
def test_the_kernel_on_shapes_and_what_it_leaves_to_the_restored_weight(shape, rows):
    """96 and 50 columns are not whole blocks of 64; 65 rows are too many."""
    weight, (inputs, *rest) = made(SOME[8], shape, (rows,), torch.bfloat16, "cuda")
    assert error(product(weight, inputs, *rest), wanted(weight, inputs, *rest)) < 0.004


@GPU
@pytest.mark.gpu
def test_the_kernel_in_a_captured_graph_and_on_inputs_of_any_layout():
    weight, (inputs, *rest) = made(SOME[4], (256, 512), (4, 2), torch.bfloat16, "cuda")
    first = product(weight, inputs, *rest)
    apart = torch.stack([inputs, inputs], -1)[..., 0]
    assert torch.equal(product(weight, apart, *rest), first)
    shifted = torch.cat([inputs.flatten()[:1], inputs.flatten()])[1:].view_as(inputs)
    assert torch.equal(product(weight, shifted, *rest), first)
    with pytest.raises(RuntimeError, match="shape"):
        product(weight, inputs[..., :256], *rest)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = product(weight, product(weight, inputs, *rest)[..., :1] * 0 + inputs, *rest)
    inputs.mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    assert error(again, wanted(weight, inputs, *rest)) < 0.004
    assert product(weight, inputs[:0], *rest).shape == (0, 2, 256)
