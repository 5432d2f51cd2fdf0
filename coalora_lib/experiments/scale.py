"""What the paper's models cost at full size, measured with random weights of their shapes.

Time and memory do not depend on the values of the weights. Accuracy does, and is not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch.utils.benchmark import timer
from transformers import AutoConfig, PreTrainedModel

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.adapter.saving import trained_parameters
from coalora_lib.allocation import error_table
from coalora_lib.experiments.profiles import PROFILES, Profile
from coalora_lib.kinds import get_kind
from coalora_lib.records.environment import device_name, versions
from coalora_lib.records.schema import Strict
from coalora_lib.records.store import write_json
from coalora_lib.spaces import random_configuration
from coalora_lib.training import TrainingPlan
from coalora_lib.training.loop import Trainer

_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1}
_QWEN = {"num_key_value_heads": 2, "tie_word_embeddings": True}
#: By profile: architecture and sizes, from the models' config.json on the hub.
FULL_SIZES: dict[str, dict[str, Any]] = {
    name: dict(zip(_FIELDS, sizes, strict=True)) | more
    for name, sizes, more in (
        ("paper", ("roberta", 50265, 1024, 4096, 24, 16), _ROBERTA),
        ("paper-qwen2.5-1.5b", ("qwen2", 151936, 1536, 8960, 28, 12), _QWEN),
        ("paper-qwen2.5-3b", ("qwen2", 151936, 2048, 11008, 36, 16), _QWEN),
        ("paper-llama-2-7b", ("llama", 32000, 4096, 11008, 32, 32), {}),
    )
}
#: Steps and switches that a median is taken over, after one that is not counted: one that another
#: program delays does not move it, nor do two.
REPEATS = 5


class ScaleRecord(Strict):
    """One model at full size.

    Attributes:
        parameters: of the model; adapted: in ``layers`` with an adapter; trained: by CoA-LoRA.
        batch_size: the profile's, halved until it fits; length: in tokens.
        seconds: "error table" (one block measured, times the blocks), "switch" to a new
            configuration, and "step" of one configuration, medians.
        peak_memory: bytes that torch held on the GPU at most, over all of it; None on a processor.
    """

    profile: str
    model: str
    device: str
    versions: dict[str, str]
    parameters: int
    adapted: int
    layers: int
    rank: int
    trained: int
    batch_size: int
    length: int
    seconds: dict[str, float]
    peak_memory: int | None


def measure_scale(name: str, folder: str | Path) -> ScaleRecord:
    """Measure a profile of :data:`FULL_SIZES` and write scale-<profile>.json into the folder.

    Raises torch.OutOfMemoryError if not even one example fits.
    """
    if name not in FULL_SIZES:
        raise ValueError(f"profile={name!r} is not known; allowed: {', '.join(FULL_SIZES)}")
    profile = PROFILES[name]
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    base = random_model(name, "cuda" if gpu else "cpu")
    weights = {name: base.get_submodule(name).weight.detach() for name in adaptable_layers(base)}
    layers, blocks = len(weights), base.config.num_hidden_layers
    block = dict(list(weights.items())[: layers // blocks])
    seconds = {"error table": blocks * _median(lambda: error_table(block), repeats=1)}
    parameters = sum(parameter.numel() for parameter in base.parameters())
    model = CoaLora.attach(base, profile.rank, profile.alpha)
    generator = torch.Generator().manual_seed(0)
    seconds["switch"] = _median(
        lambda: model.set_configuration(random_configuration(layers, generator))
    )
    batch_size, seconds["step"] = _largest_step(model, profile)
    record = ScaleRecord(
        profile=name,
        model=profile.model,
        device=device_name(),
        versions=versions(),
        parameters=parameters,
        adapted=sum(weight.numel() for weight in weights.values()),
        layers=layers,
        rank=profile.rank,
        trained=sum(parameter.numel() for parameter in trained_parameters(model).values()),
        batch_size=batch_size,
        length=profile.max_length,
        seconds={what: float(f"{spent:.4g}") for what, spent in seconds.items()},
        peak_memory=torch.cuda.max_memory_allocated() if gpu else None,
    )
    write_json(record, Path(folder) / f"scale-{name}.json")
    return record


def random_model(name: str, device: str) -> PreTrainedModel:
    """A model of full size with random weights, in its profile's dtype."""
    config = AutoConfig.for_model(**FULL_SIZES[name])
    profile = PROFILES[name]
    auto = getattr(transformers, get_kind(profile.kind).auto_class)
    with torch.device(device):
        return auto.from_config(config, dtype=getattr(torch, profile.dtype))


def _largest_step(model: CoaLora, profile: Profile) -> tuple[int, float]:
    """The profile's batch size, halved until a step fits, and the seconds of that step."""
    batch_size = profile.batch_size
    while True:
        try:
            return batch_size, _step_seconds(model, profile, batch_size)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        batch_size //= 2
        torch.cuda.empty_cache()


def _step_seconds(model: CoaLora, profile: Profile, batch_size: int) -> float:
    """Of one pass forward and backward and the optimizer, under one configuration."""
    plan = TrainingPlan(
        steps=REPEATS + 1,
        batch_size=batch_size,
        configurations_per_step=1,
        learning_rate=profile.learning_rate,
    )
    tokens = torch.randint(3, model.config.vocab_size, (batch_size, profile.max_length))
    examples = [
        {
            "input_ids": row,
            "attention_mask": torch.ones_like(row),
            "labels": row if profile.kind == "causal-lm" else torch.tensor(0),
        }
        for row in tokens
    ]
    current = model.configuration
    trainer = Trainer(model, examples, None if current is None else [current], plan)
    return _median(trainer.train_step)


def _median(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of a call, after one that is not counted; a GPU is waited for."""
    times = []
    for _ in range(repeats + 1):
        began = timer()
        call()
        times.append(timer() - began)
    return median(times[1:])
