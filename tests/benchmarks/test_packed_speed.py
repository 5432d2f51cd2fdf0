"""Products with packed weights, beside bfloat16's and bitsandbytes', and a model that decodes."""

import functools
import gc

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from coalora_lib import CoaLora
from coalora_lib.quantization import BlockwiseChoice, quantize
from coalora_lib.quantization.linear import linear
from tests.benchmarks.timing import GPU, timed

#: Bytes of weights that one round reads: no cache holds them.
ROTATED = 400 * 2**20
#: LLaMA-2-7B: its config.json.
LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


def captured(step):
    """A CUDA graph of what a function does, so that only the GPU's time counts."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def bitsandbytes_linear(weight):
    functional = pytest.importorskip("bitsandbytes.functional")
    module = pytest.importorskip("bitsandbytes")
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    return lambda inputs: module.matmul_4bit(inputs, packed.t(), quant_state=state)


def product(way, weight):
    """What multiplies inputs with a weight, and the bytes that it reads of it."""
    if way == "bfloat16":
        return lambda inputs: F.linear(inputs, weight), weight.nbytes
    if way == "bitsandbytes":
        return bitsandbytes_linear(weight), weight.numel() // 2
    packed = quantize(weight, BlockwiseChoice(int(way[0]), 8, "fp32", 64, 256))
    if way.endswith("restored"):
        return lambda inputs: F.linear(inputs, packed.dequantize(inputs.dtype)), packed.nbytes
    given = packed.parts, packed.choice, packed.shape
    return lambda inputs: linear(inputs, *given), packed.nbytes


@pytest.mark.benchmark(group="product with a packed weight")
@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize(
    "way", ["bfloat16", "bitsandbytes", "2 bits", "3 bits", "4 bits", "8 bits", "4 bits, restored"]
)
@pytest.mark.parametrize("rows", [1, 8, 16, 64, 512])
@pytest.mark.parametrize("shape", ["4096x11008", "11008x4096", "4096x4096"])
def test_product(benchmark, device, shape, rows, way):
    """``products`` of different weights are one round."""
    out, width = map(int, shape.split("x"))
    weight = (0.04 * torch.randn(out, width, device=device)).bfloat16()
    _, size = product(way, weight)
    count = -(-ROTATED // size)
    multiply = [product(way, weight.clone())[0] for _ in range(count)]
    inputs = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        graph = captured(lambda: [each(inputs) for each in multiply])
    benchmark.extra_info.update(products=count, bytes=size)
    timed(benchmark, device, graph.replay)


@functools.cache
def llama():
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            return LlamaForCausalLM(LlamaConfig(**LLAMA_2_7B)).eval()
        finally:
            torch.set_default_dtype(torch.float32)


@functools.cache
def packed_llama():
    """At 3 bits, with LoRA of rank 16 that is not zero."""
    model = CoaLora.attach(llama(), rank=16)
    with torch.no_grad():
        for factors in model.layers.factors():
            torch.nn.init.normal_(factors.l1, std=0.01)
    frozen = model.freeze(3.0)
    del model
    llama.cache_clear()  # its layers are the other model's now
    gc.collect()
    torch.cuda.empty_cache()
    return frozen


@pytest.mark.benchmark(group="a token, LLaMA-2-7B's shapes, one sequence")
@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("way", ["bfloat16", "bfloat16, compiled", "3 bits", "3 bits, compiled"])
def test_decode(benchmark, device, way):
    """One token over 128 before it: a static cache, a CUDA graph."""
    model = llama() if way.startswith("bfloat16") else packed_llama()
    held = {
        t.untyped_storage().data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())
    }
    cache = StaticCache(config=model.config, max_cache_len=256)
    start = {"past_key_values": cache, "use_cache": True}
    with torch.no_grad():
        model(torch.zeros(1, 128, dtype=torch.long, device=device), **start)
        ids = torch.ones(1, 1, dtype=torch.long, device=device)
        place = torch.full((1, 1), 128, device=device)
        seen = torch.ones(1, 1, 1, 256, dtype=torch.bool, device=device)
        seen[..., 129:] = False
        run = torch.compile(model, dynamic=False) if way.endswith("compiled") else model
        step = functools.partial(
            run, ids, attention_mask=seen, position_ids=place, cache_position=place[0], **start
        )
        graph = captured(step)
    benchmark.extra_info["bytes"] = sum(held.values())
    timed(benchmark, device, graph.replay)
