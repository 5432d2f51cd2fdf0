"""`make benchmarks`: each fast path beside its peer or its simple form, in the same run."""

import time

import pytest
import torch

from coalora_lib.adapter import adaptable_layers
from coalora_lib.allocation import allocate, error_table, undominated
from coalora_lib.allocation.solver import Limit, integer_program
from coalora_lib.calibration import ridge_factor
from coalora_lib.quantization import BlockwiseChoice, quantize
from coalora_lib.quantization.codebooks import level_grid, thresholds
from coalora_lib.quantization.compensation import quantize_for_inputs
from coalora_lib.spaces import NORMAL_FLOAT
from coalora_lib.tasks import load_classifier
from tests.allocation.test_estimate import excess_errors
from tests.benchmarks.timing import GPU, timed

QLORA = BlockwiseChoice(4, 8, "fp32", 64, 256)
#: The linear layers of one block, (out, in): of MiniLM and of RoBERTa-large.
MINILM_BLOCK = [(384, 384)] * 4 + [(1536, 384), (384, 1536)]
ROBERTA_BLOCK = [(1024, 1024)] * 4 + [(4096, 1024), (1024, 4096)]


def gaussian(shapes, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return {
        str(i): (0.04 * torch.randn(shape, generator=generator)).to(device)
        for i, shape in enumerate(shapes)
    }


@pytest.mark.benchmark(group="NF4 codes, double-quantized scales, 4096 x 1024 float32")
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("way", ["coalora_lib", "bitsandbytes"])
def test_quantize(benchmark, device, way):
    weight = gaussian([(4096, 1024)], device)["0"]
    benchmark.extra_info["bytes"] = weight.nbytes + QLORA.nbytes(weight.numel())
    if way == "coalora_lib":
        timed(benchmark, device, quantize, weight, QLORA, rounds=100)
    else:
        functional = pytest.importorskip("bitsandbytes.functional")
        settings = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True}
        timed(benchmark, device, lambda: functional.quantize_4bit(weight, **settings), rounds=100)


@pytest.mark.benchmark(group="3-bit codes of a layer of MiniLM, float32")
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("shape", ["384x384", "384x1536"])
@pytest.mark.parametrize("way", ["nearest", "for inputs"])
def test_quantize_for_inputs(benchmark, device, shape, way):
    """Beside the nearest codes, which take the same bytes; shapes are (out, in)."""
    out, width = map(int, shape.split("x"))
    weight, choice = gaussian([(out, width)], device)["0"], BlockwiseChoice(3, 8, "fp32", 64, 256)
    if way == "nearest":
        timed(benchmark, device, quantize, weight, choice, rounds=100)
        return
    inputs = torch.randn(4096, width, device=device)
    factor = ridge_factor(inputs.T @ inputs / len(inputs))
    timed(benchmark, device, quantize_for_inputs, weight, choice, factor)


@pytest.mark.benchmark(group="de-quantize to bfloat16")
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("way", ["2 bits", "3 bits", "4 bits", "8 bits", "memory copy"])
def test_dequantize(benchmark, device, way):
    shape = (16384, 16384) if device == "cuda" else (1024, 1024)
    weight = torch.randn(shape, device=device)
    benchmark.extra_info["shape"] = shape
    if way == "memory copy":
        source = weight.bfloat16()
        target = torch.empty_like(source)
        benchmark.extra_info["bytes"] = 2 * source.nbytes
        timed(benchmark, device, target.copy_, source)
    else:
        quantized = quantize(weight, BlockwiseChoice(int(way[0]), 8, "fp32", 64, 256))
        benchmark.extra_info["bytes"] = quantized.nbytes + 2 * weight.numel()
        timed(benchmark, device, quantized.dequantize, torch.bfloat16)


@pytest.mark.benchmark(group="nearest of 16 levels, a million values")
@pytest.mark.parametrize("way", ["look-up", "bisection"])
def test_nearest_level(benchmark, way):
    middles = thresholds("nf", 4)
    values = torch.randn(1_000_000) / 3
    if way == "look-up":
        timed(benchmark, "cpu", level_grid(middles).codes, values)
    else:
        timed(benchmark, "cpu", torch.bucketize, values, middles)


@pytest.mark.benchmark(group="errors of 432 choices, one MiniLM block (1.8 M weights)")
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("way", ["error_table", "one choice at a time"])
def test_error_table(benchmark, device, way):
    weights = gaussian(MINILM_BLOCK, device)

    def one_at_a_time():
        return [
            (quantize(weight, config).dequantize() - weight).square().sum()
            for config in NORMAL_FLOAT.choices
            for weight in weights.values()
        ]

    error_table({"first": weights["0"][:64]})  # the look-up tables are made once a process
    if way == "error_table":
        timed(benchmark, device, error_table, weights, rounds=3)
    else:
        if device == "cuda":
            one_at_a_time()  # compiles a kernel for each configuration
        timed(benchmark, device, one_at_a_time, rounds=1)


@pytest.mark.benchmark(group="errors of 432 choices, whole models")
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_error_table_of_a_model(benchmark, device):
    """MiniLM's shapes on a processor, RoBERTa-large's on a GPU."""
    weights = gaussian(MINILM_BLOCK * 6 if device == "cpu" else ROBERTA_BLOCK * 24, device)
    error_table({"first": weights["0"][:64]})
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    timed(benchmark, device, error_table, weights, rounds=1)
    benchmark.extra_info["weights"] = sum(weight.numel() for weight in weights.values())
    if device == "cuda":
        benchmark.extra_info["peak_memory_bytes"] = torch.cuda.max_memory_allocated()


def minilm():
    base = load_classifier()[0]
    return {name: base.get_submodule(name).weight.detach() for name in adaptable_layers(base)}


def like_llama():
    """54.7 M weights in LLaMA's shapes: rows and columns of unlike scale, some weights far out."""
    torch.manual_seed(0)
    weights = {}
    for layer, shape in enumerate(([(640, 640)] * 4 + [(1736, 640)] * 2 + [(640, 1736)]) * 11):
        weight = torch.randn(shape) * (0.6 * torch.randn(shape[0], 1)).exp()
        weight *= (0.6 * torch.randn(shape[1])).exp()
        weights[str(layer)] = torch.where(torch.rand(shape) < 0.001, 15 * weight, weight)
    return weights


@pytest.mark.benchmark(group="error table of a new model")
@pytest.mark.parametrize("weights", [minilm, like_llama], ids=["MiniLM", "LLaMA's shapes"])
def test_estimated_error_table(benchmark, weights):
    """Beside the time of the exact table in the same run, and what the estimate costs allocation.

    ``excess_errors`` are by budget in bits: of 0.01, allocated from the estimate, the weights have
    1 % more squared error than they could.
    """
    weights = weights()
    sizes = [weight.numel() for weight in weights.values()]
    error_table({"first": torch.randn(64, 64)})
    started = time.perf_counter()
    exact = error_table(weights)
    seconds = time.perf_counter() - started
    estimated = timed(benchmark, "cpu", lambda: error_table(weights, sample=True), rounds=3)
    excess = excess_errors(exact, estimated, sizes)
    alone = {str(budget): value for (budget, allowed), value in excess.items() if allowed == "None"}
    benchmark.extra_info.update(
        weights=sum(sizes),
        exact_seconds=seconds,
        times_faster=seconds / benchmark.stats["min"],
        excess_errors=alone,
        most_excess_error_on_any_device=max(excess.values()),
    )


@pytest.fixture(scope="module")
def errors_and_sizes():
    """144 layers: the errors of Gaussian weights, each layer with a sensitivity of its own."""
    table = error_table(gaussian([(128, 256)] * 12)).repeat(12, 1)
    sensitivity = 0.5 + torch.rand(144, 1, generator=torch.Generator().manual_seed(1))
    sizes = [rows * columns for rows, columns in ROBERTA_BLOCK] * 24
    return table / (128 * 256) * sensitivity * torch.tensor(sizes)[:, None], sizes


@pytest.mark.benchmark(group="allocation, 144 layers x 432 choices")
@pytest.mark.parametrize("budget", [2.5, 3.0, 4.0])
@pytest.mark.parametrize("way", ["knapsack", "HiGHS"])
def test_allocate(benchmark, errors_and_sizes, way, budget):
    errors, sizes = errors_and_sizes
    if way == "knapsack":
        found = timed(benchmark, "cpu", allocate, errors, sizes, budget, rounds=3)
        benchmark.extra_info.update(error=found.error, gap=found.gap)
        return
    bits, unit = NORMAL_FLOAT.bits_table(), 2**20
    stored = (bits * 1024).round().long() * (torch.tensor(sizes) // unit)[:, None]
    limit = Limit(stored.numpy(), int(budget * 1024) * sum(sizes) // unit)
    kept = [undominated(row, bits) for row in errors]
    picked, gap = timed(benchmark, "cpu", integer_program, errors, kept, [limit], rounds=1)
    error = sum(float(errors[i, row]) for i, row in enumerate(picked))
    benchmark.extra_info.update(error=error, gap=gap)
