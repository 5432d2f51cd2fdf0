"""`pytest tests/benchmarks`: each fast path beside its simple form, in the same run."""

import pytest
import torch

from coalora_lib.allocation import error_table
from coalora_lib.configuration import LayerConfig
from coalora_lib.quantization import normal_float, quantize
from coalora_lib.quantization.blockwise import nearest_level


@pytest.mark.benchmark(group="nearest level, a million values at 4 bits")
@pytest.mark.parametrize("way", ["grid", "bucketize"])
def test_nearest_level(benchmark, way):
    levels = normal_float(4)
    middles = (levels[1:] + levels[:-1]) / 2
    values = torch.randn(1_000_000) / 3
    if way == "grid":
        benchmark(nearest_level, values, levels)
    else:
        benchmark(torch.bucketize, values, middles)


@pytest.mark.benchmark(group="error table of a 256 x 256 layer")
@pytest.mark.parametrize("way", ["shared", "one choice at a time"])
def test_error_table(benchmark, way):
    weight = torch.randn(256, 256)

    def one_at_a_time():
        return [
            (quantize(weight, config).dequantize() - weight).square().sum()
            for config in LayerConfig.space()
        ]

    if way == "shared":
        benchmark.pedantic(error_table, ({"a": weight},), rounds=3)
    else:
        benchmark.pedantic(one_at_a_time, rounds=3)
