"""Several processes train what one does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import several_processes


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    one = several_processes.run(tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    (tmp_path / "two").mkdir()
    done = subprocess.run(
        [*launcher, "-m", several_processes.__name__, str(tmp_path / "two")],
        cwd=Path(__file__).parents[2],
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for process in (0, 1):
        two = load_file(tmp_path / "two" / f"{process}.safetensors")
        assert two.keys() == one.keys()
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, atol=1e-4, rtol=0)
