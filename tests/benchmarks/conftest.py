"""What a stored benchmark says of the machine it ran on."""

import os
import platform
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _all_cores(_seeded):
    """The unit tests' single thread is for tiny tensors; these are not."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info["processor"] = _processor()
    machine_info["cores"] = len(os.sched_getaffinity(0))
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info["torch"] = torch.__version__.partition("+")[0]
    machine_info["python"] = platform.python_version()


def _processor() -> str:
    """The processor's name where Linux tells it; only its kind elsewhere."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
