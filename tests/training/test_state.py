"""Several processes train what one does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = """
import sys
import torch
from safetensors.torch import save_file
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.saving import trained_parameters
from coalora_lib.search import SearchPlan
from coalora_lib.training import TrainingPlan, train
from tests.conftest import tiny

torch.set_num_threads(1)
tokens = torch.randint(6, 64, (40, 8), generator=torch.Generator().manual_seed(1))
examples = [
    {"input_ids": row, "attention_mask": row * 0 + 1, "labels": torch.tensor(i % 2)}
    for i, row in enumerate(tokens)
]
configurations = [[BlockwiseChoice(bits, 8, "fp32", 16, 16)] * 12 for bits in (3, 4, 8)]
model = CoaLora.attach(tiny("bert"), rank=4)
history = train(
    model, examples, configurations, TrainingPlan(steps=9, batch_size=8, learning_rate=1e-2),
    search=SearchPlan(rounds=3, restarts=2, max_steps=2), scoring=examples[:8],
    checkpoints=sys.argv[1] + "/checkpoints", checkpoint_every=3,
)
distributed = torch.distributed.is_initialized()
rank = torch.distributed.get_rank() if distributed else 0
weights = {n: p.detach() for n, p in trained_parameters(model).items()}
weights["losses"] = torch.tensor(history.losses)
save_file(weights, f"{sys.argv[1]}/{rank}.safetensors")
if distributed:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    launchers = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"],
    }
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for name, launcher in launchers.items():
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [*launcher, str(program), str(tmp_path / name)],
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one = load_file(tmp_path / "one" / "0.safetensors")
    for process in (0, 1):
        two = load_file(tmp_path / "two" / f"{process}.safetensors")
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, atol=1e-4, rtol=0)
