"""A small training run with searches, in one process or, by torch's launcher, in several."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.saving import trained_parameters
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.search import SearchPlan
from coalora_lib.training import TrainingPlan, train
from tests.conftest import tiny


def run(folder: Path) -> dict[str, torch.Tensor]:
    """The trained parameters, and the losses under "losses"."""
    tokens = torch.randint(6, 64, (40, 8), generator=torch.Generator().manual_seed(1))
    examples = [
        {"input_ids": row, "attention_mask": row * 0 + 1, "labels": torch.tensor(i % 2)}
        for i, row in enumerate(tokens)
    ]
    configurations = [[BlockwiseChoice(bits, 8, "fp32", 16, 16)] * 12 for bits in (3, 4, 8)]
    model = CoaLora.attach(tiny("bert"), rank=4)
    history = train(
        model,
        examples,
        configurations,
        TrainingPlan(steps=9, batch_size=8, learning_rate=1e-2),
        search=SearchPlan(rounds=3, restarts=2, max_steps=2),
        scoring=examples[:8],
        checkpoints=folder / "checkpoints",
        checkpoint_every=3,
    )
    weights = {name: p.detach() for name, p in trained_parameters(model).items()}
    return weights | {"losses": torch.tensor(history.losses)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = run(Path(sys.argv[1]))
    save_file(found, f"{sys.argv[1]}/{torch.distributed.get_rank()}.safetensors")
    torch.distributed.destroy_process_group()
