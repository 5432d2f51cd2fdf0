"""One configuration as GGUF files, for llama.cpp: the quantized model, and its adapter apart.

Merged into the weights and quantized again, an adapter's gain would be lost. A GGUF adapter holds
no biases, so the correction of the mean output and L1 v join the biases of the base file:

    lora_a = [(I + U) L2; R2]    lora_b = [(alpha / r) L1, R1]
    bias = bias + (alpha / r) L1 v + (W - Q) E[x]
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from coalora_lib.adapter.adjusters import Factors
from coalora_lib.adapter.export import folded, without_idle
from coalora_lib.adapter.heads import plain_name
from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.allocation import Limit
from coalora_lib.files import atomic_folder, seal
from coalora_lib.gguf import BaseFile, Options, architecture_of, card, padded, write_adapter_file
from coalora_lib.packaged import full_name, locate
from coalora_lib.spaces import Choice, GgufSpace, GgufWeight

#: By which an export is known, and what it was made of.
MARKER = "coalora_gguf.json"
BASE, ADAPTER, CARD = "base.gguf", "adapter.gguf", "README.md"
#: What else one holds.
FILES = (BASE, ADAPTER, CARD)


def checked_file(
    model: PeftModel,
    layers: AdaptedLayers,
    tokenizer: PreTrainedTokenizerBase | None,
    options: Options,
    biases: Mapping[str, Tensor] | None = None,
) -> BaseFile:
    """The file of the quantized model, with these biases in the adapted layers.

    The tokenizer is the one under the model's name unless given.

    Raises:
        ValueError: the layers' space has no GGUF types, or llama.cpp has no such model or
            tokenizer.
    """
    base: PreTrainedModel = model.get_base_model()
    space = next(iter(layers.quantized.values())).space
    if not isinstance(space, GgufSpace):
        raise ValueError(
            f"the layers are quantized in the space {space.name!r}, which llama.cpp "
            "cannot read: attach or train with space='gguf'"
        )
    architecture_of(base)  # before a tokenizer is looked for
    if tokenizer is None:
        folder = locate(base.name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    added = {f"{name}.bias": bias for name, bias in (biases or {}).items()}
    return BaseFile(base, tokenizer, _plain_state(base) | added, options)


def size_limit(file: BaseFile, layers: AdaptedLayers, most: int) -> Limit:
    """What the layers may take for base.gguf to have so many bytes at most."""
    shapes = layers.shapes
    space = next(iter(layers.quantized.values())).space
    stored = torch.stack([space.bytes_table(shape) for shape in shapes.values()])
    costs = stored.apply_(padded).numpy()
    costs[0] += file.beside(shapes)  # so that sums are of the whole file, in messages too
    return Limit(costs, min(most, int(costs.max(1).sum())), f"bytes of {BASE}")


@torch.no_grad()
def write_gguf(
    model: PeftModel,
    layers: AdaptedLayers,
    factors: Sequence[Factors],
    configuration: Sequence[Choice],
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    options: Options,
) -> Path:
    """Write base.gguf, adapter.gguf and a README; as :func:`.export.write_adapter` otherwise."""
    stored = layers.packed(configuration)
    weights = {
        name: each.quantized
        for name, each in stored.items()
        if isinstance(each.quantized, GgufWeight)  # all of them, as their space was checked
    }
    terms, biases = {}, {}
    states = layers.states(configuration)
    factors = without_idle(factors, layers.have_terms(configuration))
    for (name, layer), state, each in zip(layers.quantized.items(), states, factors, strict=True):
        left, right, bias = folded(layer, state, stored[name], each, layers.scaling)
        terms[name] = left, right
        if bias is not None:
            biases[name] = bias
    file = checked_file(model, layers, tokenizer, options, biases)
    space = next(iter(layers.quantized.values())).space
    rows = dict(zip(layers.quantized, space.to_rows(configuration), strict=True))
    base = model.get_base_model()
    about = {"base_model": full_name(base.name_or_path), "space": space.name, "configuration": rows}
    bits = space.mean_bits(configuration, list(layers.shapes.values()))
    types = {name: weight.kind for name, weight in weights.items()}
    with atomic_folder(folder, MARKER, FILES) as partial:
        (partial / MARKER).write_text(seal(about))
        file.write(partial / BASE, weights)
        write_adapter_file(partial / ADAPTER, file.names, file.architecture.name, terms)
        sizes = tuple((partial / name).stat().st_size for name in (BASE, ADAPTER))
        text = card(base.name_or_path, file.architecture.name, options.pooling, bits, types, sizes)
        (partial / CARD).write_text(text)
    return Path(folder)


def _plain_state(base: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of the transformers model by their names in it, but those of adapted layers.

    Heads are as they were trained. An output layer that is tied to the embedding is left out.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in base.state_dict().items():
        if ".lora_" in name or ".base_layer." in name or ".original_module." in name:
            continue
        found[plain_name(name).replace(".modules_to_save.default.", ".")] = tensor
    output = base.get_output_embeddings()
    if output is not None and output.weight is base.get_input_embeddings().weight:
        found.pop("lm_head.weight", None)
    return found
