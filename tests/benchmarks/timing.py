"""How the benchmarks time: to the end of the work on the device."""

import pytest
import torch

GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


def timed(benchmark, device, function, *args, rounds=20):
    """Time a function to its end on the device; what it returns last is returned."""

    def run():
        result = function(*args)
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    benchmark.extra_info["device"] = device
    return benchmark.pedantic(run, rounds=rounds, warmup_rounds=3 if rounds > 3 else 0)
