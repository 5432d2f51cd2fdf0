"""The two files that llama.cpp runs: a quantized model, and the LoRA that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coalora_lib.gguf.architectures import Names, architecture_of, describe, rotary_factors
from coalora_lib.gguf.vocabulary import vocabulary_of
from coalora_lib.gguf.writing import Entry, file_size, write_file
from coalora_lib.spaces import GgufWeight
from coalora_lib.spaces.gguf import BLOCKS, fits, library, stored

if TYPE_CHECKING:
    from gguf import GGUFWriter

#: How a text's vectors become one.
POOLINGS = ("mean", "cls")
#: Names of matrices that llama.cpp looks up rows of, and wants exact.
EXACT = ("position_embd.weight", "token_types.weight")


@dataclass(frozen=True)
class Options:
    """How a base file is written, beside the adapted layers."""

    embedding: str = "F16"  #: type of the token embedding, and of the output layer
    pooling: str = "mean"  #: one of :data:`POOLINGS`; for encoders

    def __post_init__(self) -> None:
        for name, allowed in (("embedding", tuple(BLOCKS)), ("pooling", POOLINGS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(
                    f"{name}={value!r:.80} is not known; allowed: {', '.join(allowed)}"
                )


class BaseFile:
    """A model as a GGUF file.

    Args:
        model: the transformers model; its class and configuration are looked at, not its tensors.
        tokenizer: its tokenizer.
        tensors: every tensor of the model but the weights of its adapted layers, by name.
        options: see :class:`Options`.

    Raises:
        ValueError: llama.cpp has no such model or tokenizer, or a row of the embedding does not fit
            its type.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tensors: Mapping[str, Tensor],
        options: Options,
    ) -> None:
        self.architecture = architecture_of(model)
        self.names = Names(self.architecture, model.config)
        if not all(self.names.takes(name) for name in tensors):
            self.architecture = self.architecture.with_biases()
            self.names = Names(self.architecture, model.config)
        self._config, self._options = model.config, options
        self._title = model.name_or_path.rstrip("/").rpartition("/")[2] or model.config.model_type
        self._vocabulary = vocabulary_of(tokenizer, model.get_input_embeddings().weight.shape[0])
        self._entries = [
            self._entry(name, tensor)
            for name, tensor in tensors.items()
            if not self.names.drops(name)
        ]
        if (factors := rotary_factors(model)) is not None:
            self._entries.append(
                Entry(
                    "rope_freqs.weight",
                    tuple(factors.shape),
                    "F32",
                    partial(stored, factors, "F32"),
                )
            )

    def beside(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Bytes of the file apart from the weights of the adapted layers, which have these shapes.

        With a bias in each: a correction may need it.
        """
        weights = [
            Entry(self.names.of(f"{name}.weight"), shape, "F16", _unmade)
            for name, shape in shapes.items()
        ]
        biases = [
            Entry(self.names.of(f"{name}.bias"), shape[:1], "F32", _unmade)
            for name, shape in shapes.items()
        ]
        there = {entry.name for entry in self._entries}
        missing = [entry for entry in biases if entry.name not in there]
        entries = [*self._entries, *weights, *missing]
        whole = file_size(self.architecture.name, self._fill, entries)
        return whole - sum(entry.nbytes for entry in weights)

    def write(self, path: Path, weights: Mapping[str, GgufWeight]) -> None:
        """Write the file, with these weights in the adapted layers."""
        adapted = [self._adapted(name, weight) for name, weight in weights.items()]
        write_file(path, self.architecture.name, self._fill, [*self._entries, *adapted])

    def _adapted(self, name: str, weight: GgufWeight) -> Entry:
        full = f"{name}.weight"

        def make() -> GgufWeight:
            return replace(weight, data=self.names.ordered(full, weight.data))

        return Entry(self.names.of(full), weight.shape, weight.kind, make)

    def _entry(self, name: str, tensor: Tensor) -> Entry:
        """A tensor of the rest of the model."""
        found, kind = self.names.of(name), "F32"
        if found in ("token_embd.weight", "output.weight"):
            kind = self._options.embedding
            if not fits(kind, tuple(tensor.shape)):
                raise ValueError(
                    f"embedding={kind!r} needs rows of a multiple of {BLOCKS[kind][0]}; those of "
                    f"{name} are {tensor.shape[-1]} long"
                )
        elif tensor.dim() > 1 and found not in EXACT:
            kind = "F16"

        def make() -> GgufWeight:
            return stored(self.names.ordered(name, tensor.detach()), kind)

        return Entry(found, tuple(tensor.shape), kind, make)

    def _fill(self, writer: GGUFWriter) -> None:
        gguf = library("gguf")
        writer.add_type("model")
        writer.add_name(self._title)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        describe(writer, self.architecture, self._config)
        if self.architecture.name == "bert":
            writer.add_pooling_type(gguf.PoolingType[self._options.pooling.upper()])
        self._vocabulary.fill(writer)


def _unmade() -> GgufWeight:
    raise NotImplementedError("this tensor is only measured")


def write_adapter_file(
    path: Path, names: Names, architecture: str, factors: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """Write a LoRA: (out, r) B, scaled already, and (r, in) A of each layer, in float32.

    alpha is 0: llama.cpp then takes B A as it is.
    """
    entries = []
    for name, (second, first) in factors.items():
        base = names.of(f"{name}.weight")
        second = names.ordered(f"{name}.weight", second)
        for part, tensor in (("lora_a", first), ("lora_b", second)):
            make: Callable[[], GgufWeight] = partial(stored, tensor, "F32")
            entries.append(Entry(f"{base}.{part}", tuple(tensor.shape), "F32", make))

    def fill(writer: GGUFWriter) -> None:
        keys = library("gguf").Keys
        writer.add_type("adapter")
        writer.add_string(keys.Adapter.TYPE, "lora")
        writer.add_float32(keys.Adapter.LORA_ALPHA, 0.0)

    write_file(path, architecture, fill, entries)
