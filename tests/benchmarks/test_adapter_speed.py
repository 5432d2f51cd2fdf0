"""`make benchmarks`: what the configuration costs a training step, and what a switch costs."""

import time
from functools import cache

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from coalora_lib.adapter import CoaLora, adaptable_layers
from coalora_lib.spaces import random_configuration
from coalora_lib.tasks import load_classifier
from coalora_lib.training import TrainingPlan, input_moments, train
from coalora_lib.training.baselines import lora, lq_lora
from coalora_lib.training.loop import Trainer
from tests.benchmarks.timing import GPU, timed

#: Per device: batch, tokens a sentence, rank. RoBERTa-large's as the paper trains it.
SHAPES = {"cpu": (16, 32, 16), "cuda": (64, 128, 64)}
#: Forward-backward passes of the whole runs.
PASSES = 400


@cache
def roberta_state():
    """Weights of RoBERTa-large's shapes, random, made once."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return roberta_large().state_dict()


def roberta_large():
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=50265,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            max_position_embeddings=514,
            type_vocab_size=1,
            pad_token_id=1,
        )
    )


def base_model(device):
    """RoBERTa-large's shapes in bfloat16 on the GPU, MiniLM on the processor."""
    if device == "cpu":
        return load_classifier().model
    with torch.device("meta"):
        model = roberta_large()
    model.load_state_dict(roberta_state(), assign=True)
    # Buffers that no state holds have to be made; weights are copied, for they will be changed.
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                fresh = torch.zeros if name == "token_type_ids" else _counting
                setattr(module, name, fresh(buffer.shape, dtype=buffer.dtype, device=device))
    return model.to(torch.bfloat16)


def _counting(shape, dtype, device):
    return torch.arange(shape[-1], dtype=dtype, device=device).expand(shape)


def sentences(device, count=64):
    batch, length, _ = SHAPES[device]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 30000, (max(count, batch), length), generator=generator)
    ones = torch.ones(length, dtype=torch.int64)
    return [
        {"input_ids": row, "attention_mask": ones, "labels": torch.tensor(i % 2)}
        for i, row in enumerate(tokens)
    ]


def configurations(layers, count):
    generator = torch.Generator().manual_seed(0)
    return [random_configuration(layers, generator) for _ in range(count)]


def plan(device, steps=10_000):
    batch, _, _ = SHAPES[device]
    return TrainingPlan(steps, batch, configurations_per_step=1, learning_rate=1e-4)


def new_trainer(way, device):
    """A run whose configurations are all in the cache."""
    rank = SHAPES[device][2]
    if way == "LoRA, unquantized":
        model, chosen = lora(base_model(device), rank), None
    else:
        model = CoaLora.attach(
            base_model(device),
            rank,
            adjuster="hypernetwork" if way == "CoA-LoRA" else "none",
            cache_bytes=2**35,
        )
        chosen = configurations(len(model.layer_names), 4)
        for configuration in chosen:
            model.set_configuration(configuration)
    return Trainer(model, sentences(device), chosen, plan(device))


@pytest.mark.benchmark(group="training step")
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("way", ["Shared-LoRA", "LoRA, unquantized"])
def test_training_step(benchmark, device, way):
    """The peer's step; ours is timed in turn with it, so that both see the same machine."""
    ours, theirs = new_trainer("CoA-LoRA", device), new_trainer(way, device)
    seconds = []

    def step(trainer):
        trainer.train_step()
        if device == "cuda":
            torch.cuda.synchronize()

    def step_of_ours():
        began = time.perf_counter()
        step(ours)
        seconds.append(time.perf_counter() - began)
        return (theirs,), {}

    benchmark.extra_info["device"] = device
    benchmark.pedantic(step, setup=step_of_ours, rounds=60, warmup_rounds=5, iterations=1)
    benchmark.extra_info["ours_seconds"] = sorted(seconds[5:])


@pytest.mark.benchmark(group="a step of MiniLM, 2 configurations, 128 phrases of 16 tokens")
@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("way", ["launched", "captured"])
def test_captured_step(benchmark, device, way):
    """What CUDA graphs save where a model is small."""
    model = CoaLora.attach(load_classifier()[0].to(device), 16)
    chosen = configurations(len(model.layer_names), 4)
    phrases = [
        {name: t[:16] if t.ndim else t for name, t in row.items()} for row in sentences("cpu", 256)
    ]
    several = TrainingPlan(10_000, 128, configurations_per_step=2, cuda_graphs=way == "captured")
    trainer = Trainer(model, phrases, chosen, several)
    with trainer.capturing():
        timed(benchmark, device, trainer.train_step, rounds=60)


@pytest.mark.benchmark(group="all adapters of a configuration, RoBERTa-large's shapes, r = 64")
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_adapters(benchmark, device):
    model = CoaLora.attach(base_model("cuda") if device == "cuda" else roberta_large(), rank=64)
    chosen = configurations(len(model.layer_names), 1)[0]

    @torch.no_grad()
    def adapters():
        return model.adapted_factors(chosen)

    assert len(timed(benchmark, device, adapters, rounds=200)) == 144


@pytest.mark.benchmark(group="switching the configuration")
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("way", ["cold", "packed", "cached"])
def test_switch(benchmark, device, way):
    limit = 2**35 if way == "cached" else 2**29 if device == "cuda" else 2**24
    model = CoaLora.attach(base_model(device), rank=16, cache_bytes=limit)
    first, second = configurations(len(model.layer_names), 2)
    turn = [first, second]

    def switch():
        if way == "cold":
            model.layers.cache.clear()
        turn.reverse()
        model.set_configuration(turn[0])

    for _ in range(4):
        switch()
    timed(benchmark, device, switch, rounds=20)
    benchmark.extra_info["weights"] = sum(model.sizes)
    benchmark.extra_info["cache_bytes"] = model.layers.cache.held
    assert model.layers.cache.held <= limit


@pytest.mark.benchmark(group="switching to a configuration never met, calibrated terms included")
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("way", ["together", "layer by layer"])
def test_calibrated_switch(benchmark, device, way):
    base = base_model(device)
    means, seconds = input_moments(base, adaptable_layers(base), sentences(device))
    model = CoaLora.attach(
        base,
        SHAPES[device][2],
        start="calibrated",
        adjuster="none",
        bias_correction=True,
        mean_inputs=means,
        second_moments=seconds,
        cache_bytes=2**35,
    )
    layers = model.layers.quantized.values()
    new = iter(configurations(len(layers), 30))  # corrections are kept, so none is met twice

    def switch():
        model.layers.cache.clear()
        if way == "together":
            model.layers.switch(next(new))
            return
        with torch.no_grad():
            for layer, choice in zip(layers, next(new), strict=True):
                layer.switch(choice, *layer.under(choice))

    timed(benchmark, device, switch, rounds=20 if device == "cuda" else 5)
    benchmark.extra_info["weights"] = sum(model.sizes)


@pytest.mark.benchmark(group="a whole run")
@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("way", ["CoA-LoRA", "LQ-LoRA"])
def test_run(benchmark, device, way):
    """One run over 50 configurations from an empty cache, against one over one configuration."""
    rank, extra = SHAPES[device][2], benchmark.extra_info
    train(lora(base_model(device), rank), sentences(device), None, plan(device, 20))  # warm
    base = base_model(device)
    extra["passes"] = PASSES

    def run():
        began = time.perf_counter()
        if way == "CoA-LoRA":
            model = CoaLora.attach(base, rank, cache_bytes=2**36)
            chosen = configurations(len(model.layer_names), 50)
        else:
            model, chosen = lq_lora(base, configurations(144, 1)[0], rank), None
        torch.cuda.synchronize()
        extra["preparation_seconds"] = time.perf_counter() - began
        began = time.perf_counter()
        train(model, sentences(device), chosen, plan(device, PASSES))
        torch.cuda.synchronize()
        extra["training_seconds"] = time.perf_counter() - began

    timed(benchmark, device, run, rounds=1)
