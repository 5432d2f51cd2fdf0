"""Models of transformers as llama.cpp knows them: names, order of rows, keys of the file.

Tested with llama.cpp as xllamacpp 2026.10.11549 brings it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from coalora_lib.spaces.gguf import library

if TYPE_CHECKING:
    from gguf import GGUFWriter

#: A tensor, or an array, whose first dimension is a layer's outputs.
Rows = TypeVar("Rows", Tensor, Any)


@dataclass(frozen=True)
class Architecture:
    """A class of transformers that llama.cpp runs."""

    name: str  #: as llama.cpp calls it
    model: str  #: the class of transformers
    activations: tuple[str, ...]  #: that llama.cpp computes for it
    describe: Callable[[GGUFWriter, Any], None]  #: writes the keys of a configuration
    paired: bool = False  #: whether rotary position pairs neighbours, not halves of a head
    dropped: tuple[str, ...] = ()  #: beginnings of names that llama.cpp has no use for
    biased: tuple[str, ...] = ()  #: ends of its names of layers that may have a bias; () for all

    def with_biases(self) -> Self:
        """One that computes the same, and takes a bias in every layer.

        That is LLaMA's, whose order of rows is another; it differs from Qwen2's in nothing else.
        """
        return replace(self, name="llama", paired=True, biased=()) if self.biased else self


def _describe_bert(writer: GGUFWriter, config: Any) -> None:
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_token_type_count(config.type_vocab_size)


def _describe_decoder(writer: GGUFWriter, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])  # 10000 if it is left out


ARCHITECTURES = (
    Architecture(
        "bert",
        "BertModel",
        ("gelu", "gelu_new", "gelu_pytorch_tanh"),
        _describe_bert,
        dropped=("pooler.", "embeddings.position_ids", "embeddings.token_type_ids"),
    ),
    Architecture("llama", "LlamaForCausalLM", ("silu",), _describe_decoder, paired=True),
    Architecture(
        "qwen2",
        "Qwen2ForCausalLM",
        ("silu",),
        _describe_decoder,
        biased=("attn_q", "attn_k", "attn_v"),  # any other bias is a tensor too many for it
    ),
)
#: Changes of rotary frequencies, by architecture, that ``rope_freqs.weight`` can express.
SCALED_ROPE = {"llama": ("linear", "llama3")}


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The architecture of a model.

    Raises:
        ValueError: there is none for its class, or llama.cpp computes differently from the model's
            configuration; the field is named.
    """
    kind, config = type(model).__name__, model.config
    found = next((each for each in ARCHITECTURES if each.model == kind), None)
    if found is None:
        raise ValueError(
            f"a {kind} cannot be written as GGUF; allowed: "
            f"{', '.join(each.model for each in ARCHITECTURES)}"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    allowed = {
        "hidden_act": found.activations,
        "rope_parameters.rope_type": ("default", *SCALED_ROPE.get(found.name, ())),
        "use_sliding_window": (False,),
        "is_decoder": (False,),
        "position_embedding_type": ("absolute",),
    }
    given = {name: getattr(config, name, values[0]) for name, values in allowed.items()}
    given["rope_parameters.rope_type"] = rope
    for name, values in allowed.items():
        if given[name] not in values:
            raise ValueError(
                f"a {kind} with {name}={given[name]!r} cannot be written as GGUF; allowed: "
                f"{', '.join(map(repr, values))}"
            )
    return found


def describe(writer: GGUFWriter, architecture: Architecture, config: Any) -> None:
    """Write the sizes of a model, and the other keys of its architecture."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    architecture.describe(writer, config)


class Names:
    """The names of a model's tensors in a GGUF file, and the order of their rows there."""

    def __init__(self, architecture: Architecture, config: Any) -> None:
        gguf = library("gguf")
        known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
        number = known[architecture.name]
        self._map = gguf.get_tensor_name_map(number, config.num_hidden_layers)
        self._architecture, self._config = architecture, config

    def drops(self, name: str) -> bool:
        """Whether llama.cpp has no use for a tensor."""
        return name.startswith(self._architecture.dropped)

    def of(self, name: str) -> str:
        """The name of a tensor; ValueError if it has none."""
        path, _, last = name.rpartition(".")
        found = self._map.get_name(path)
        if found is None:
            raise ValueError(f"{name} of the {self._architecture.model} has no name in a GGUF file")
        return f"{found}.{last}"

    def takes(self, name: str) -> bool:
        """Whether llama.cpp takes a tensor: some biases would be one too many for it."""
        biased = self._architecture.biased
        if not biased or not name.endswith(".bias"):
            return True
        return self.of(name).removesuffix(".bias").endswith(biased)

    def ordered(self, name: str, rows: Rows) -> Rows:
        """Rows of a tensor of the model as llama.cpp wants them.

        transformers turns the first half of a head's outputs against the second; llama.cpp turns
        neighbours in LLaMA. So weights, biases and ``lora_B`` of queries and keys are permuted,
        each with its own number of heads.
        """
        if not self._architecture.paired:
            return rows
        config = self._config
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        layer = name.split(".")[-2]
        return paired(rows, heads[layer]) if layer in heads else rows


def paired(rows: Rows, heads: int) -> Rows:
    """Within each head, rows 0, h/2, 1, h/2 + 1, ... of h."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(rows.shape)


def rotary_factors(model: PreTrainedModel) -> Tensor | None:
    """The divisor of each rotary frequency, (head / 2,), or None for the plain frequencies."""
    parameters: Mapping[str, Any] = getattr(model.config, "rope_parameters", None) or {}
    if parameters.get("rope_type", "default") == "default":
        return None
    used = model.model.rotary_emb.inv_freq.detach().cpu().double()
    exponents = torch.arange(len(used), dtype=torch.float64) / len(used)
    return (parameters["rope_theta"] ** -exponents / used).float()
