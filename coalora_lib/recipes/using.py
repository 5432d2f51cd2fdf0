"""What a trained run is for: measured at some bits, adapted to a device, reported on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import ClassLabel, List, Value
from transformers import PreTrainedTokenizerBase

from coalora_lib.adapter import CoaLora
from coalora_lib.gguf import Options
from coalora_lib.recipes.device import Device
from coalora_lib.recipes.folder import RunFolder
from coalora_lib.recipes.texts import longest, prepared, read_texts
from coalora_lib.recipes.training import measured
from coalora_lib.spaces import Configuration


class Adapted(NamedTuple):
    """What was written for a device."""

    folder: Path
    bits: float  #: mean bits of the quantized layers
    nbytes: int  #: that these layers store
    layers: dict[str, Any]  #: each layer's choice
    files: dict[str, int]  #: bytes of what llama.cpp reads; empty for PEFT


def evaluate_run(run: RunFolder, bits: Sequence[float], data: str | Path) -> list[dict[str, float]]:
    """Metrics of a run's model on a table, at some mean bits each: bits and metrics by name.

    Raises:
        ValueError, OSError: the table has other columns or classes than the run, or a budget is
            not feasible.
    """
    settings, outcome = run.settings, run.outcome
    classes: Any = None
    if outcome.classes is not None:
        classes = ClassLabel(names=outcome.classes)
        classes = List(classes) if outcome.kind == "several-labels" else classes
    elif outcome.kind == "regression":
        classes = Value("float32")
    split = prepared(read_texts(str(data), settings, classes), outcome.kind)
    model, tokenizer = run.load_model(), run.load_tokenizer()
    most = longest(settings.max_length, tokenizer, model)
    examples = run.kind.examples(split, tokenizer, most)
    return measured(model, examples, bits, outcome.kind)


def adapt(
    run: RunFolder,
    out: str | Path,
    device: Device,
    weights: str | None = "base_model",
    gguf: Options | None = None,
) -> Adapted:
    """Write the adapter for a device, and beside it the quantized model.

    Args:
        run: a finished one.
        out: new, empty, or an earlier export, which is replaced.
        device: its memory, and the choices that it can run.
        weights: as :meth:`~coalora_lib.adapter.CoaLora.export_peft_adapter` takes it.
        gguf: write GGUF files for llama.cpp so, instead of plain PEFT.

    Raises:
        ValueError: the device cannot hold the model (the smallest that is feasible is named), or
            runs none of a layer's choices; or llama.cpp has no such model.
        FileExistsError: ``out`` holds something else.
    """
    model, tokenizer = run.load_model(), run.load_tokenizer()
    if gguf is not None:
        model.check_gguf(Path(out).expanduser(), tokenizer, **vars(gguf))
    configuration = model.resolve(device.constraints(model, gguf, tokenizer))
    return write_adapted(model, tokenizer, out, configuration, weights, gguf)


def write_adapted(
    model: CoaLora,
    tokenizer: PreTrainedTokenizerBase,
    out: str | Path,
    configuration: Configuration,
    weights: str | None,
    gguf: Options | None = None,
) -> Adapted:
    """Write a model's adapter for one configuration, and its tokenizer beside ``base_model``."""
    out = Path(out).expanduser()
    files: dict[str, int] = {}
    if gguf is not None:
        folder = model.export_gguf(out, configuration, tokenizer, **vars(gguf))
        files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.gguf"))}
    else:
        folder = model.export_peft_adapter(out, configuration, weights)
        if weights == "base_model":
            tokenizer.save_pretrained(folder / "base_model")
    return Adapted(
        folder,
        model.space.mean_bits(configuration, model.shapes),
        _nbytes(model, configuration),
        dict(zip(model.layer_names, configuration, strict=True)),
        files,
    )


def _nbytes(model: CoaLora, configuration: Sequence[Any]) -> int:
    pairs = zip(configuration, model.shapes, strict=True)
    return sum(model.space.nbytes(choice, shape) for choice, shape in pairs)


class Reported(NamedTuple):
    """A run at a glance."""

    settings: dict[str, Any]
    outcome: dict[str, Any]
    parameters: str  #: the model's report
    sizes: list[dict[str, float]]  #: bits and bytes of the quantized layers at each budget
    layers: dict[str, list[float]]  #: each layer's bits at these budgets


def report(run: RunFolder) -> Reported:
    """Layers, bits, sizes, training and searches of a finished run."""
    model, outcome = run.load_model(), run.outcome
    sizes: list[dict[str, float]] = []
    layers: dict[str, list[float]] = {name: [] for name in model.layer_names}
    for row in outcome.metrics:
        configuration = model.resolve(row["bits"] + 1e-9)
        bits = model.space.mean_bits(configuration, model.shapes)
        sizes.append({"bits": bits, "bytes": float(_nbytes(model, configuration))})
        for name, choice, shape in zip(model.layer_names, configuration, model.shapes, strict=True):
            layers[name].append(model.space.bits_per_parameter(choice, shape))
    return Reported(
        run.settings.model_dump(mode="json"),
        outcome.model_dump(mode="json"),
        str(model.report()),
        sizes,
        layers,
    )
