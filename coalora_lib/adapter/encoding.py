"""The encoding Q_i = [z_i, m_i, b_i] of a layer and its configuration (paper, section 4.1).

z_i embeds the fields of c_i, m_i the layer's module type, b_i the index of its block. An option
adds three numbers: how wrong the layer is under c_i, the bits it takes, and the model's bits.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coalora_lib.spaces import ConfigurationSpace


@dataclass(frozen=True)
class LayerDescriptions:
    """Where each layer sits in its model."""

    types: tuple[str, ...]  #: the distinct module types, such as "attention.self.query"
    type_index: Tensor  #: (layers,) int64, each layer's position in ``types``
    block_index: Tensor  #: (layers,) int64, counted from 0


def describe_layers(names: Sequence[str]) -> LayerDescriptions:
    """Read block index and module type off module paths: the first integer, and what follows it.

    "bert.encoder.layer.3.attention.self.query" is "attention.self.query" in block 3, and
    "model.layers.7.mlp.up_proj" is "mlp.up_proj" in block 7. A model of several stacks, such as an
    encoder and a decoder, has types of each: "encoder.block: layer.0.SelfAttention.q". A layer
    outside the blocks has its own type, and block 0.
    """
    parts = [re.fullmatch(r"(?:(.*?)\.)??(\d+)\.(.+)", name) for name in names]
    stacks = {part[1] for part in parts if part is not None}
    kinds, blocks = [], []
    for name, part in zip(names, parts, strict=True):
        stack, block, kind = (None, 0, name) if part is None else part.groups()
        blocks.append(int(block))
        kinds.append(kind if len(stacks) < 2 or part is None else f"{stack}: {kind}")
    types = tuple(dict.fromkeys(kinds))
    index = torch.tensor([types.index(kind) for kind in kinds])
    return LayerDescriptions(types, index, torch.tensor(blocks))


class ContinuousMeasures(nn.Module):
    """Numbers of a configuration: log relative error and bits of each layer, bits of the model.

    Errors and bits are standardized over the layers and choices, so that the three are of the
    embeddings' size. ``errors`` are (layers, choices), from
    :func:`coalora_lib.allocation.error_table`; ``weights`` the pre-trained ones.
    """

    COUNT = 3

    log_errors: Tensor
    bits: Tensor
    shares: Tensor
    strides: Tensor

    def __init__(
        self, errors: Tensor, weights: Mapping[str, Tensor], space: ConfigurationSpace
    ) -> None:
        super().__init__()
        norms = torch.stack([weight.double().square().sum() for weight in weights.values()])
        relative = errors.double().cpu() / norms.cpu()[:, None]
        # A layer without any error (all weights alike) has no logarithm; 1e-12 is below 8 bits'.
        logs = relative.clamp_min(1e-12).log10()
        sizes = torch.tensor([weight.numel() for weight in weights.values()]).double()
        bits = torch.stack([space.bits_table(tuple(w.shape)) for w in weights.values()])
        for name, tensor in (
            ("log_errors", _standardized(logs, logs).float()),
            ("bits", _standardized(bits, space.bits_table()).float()),
            ("shares", (sizes / sizes.sum()).float()),
            ("strides", torch.tensor(space.strides)),
        ):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, indices: Tensor) -> Tensor:
        """(..., layers, fields) int64 to (..., layers, 3)."""
        choice = (indices * self.strides).sum(-1)
        layer = torch.arange(choice.shape[-1], device=choice.device)
        bits = self.bits[layer, choice]
        model_bits = (bits * self.shares).sum(-1, keepdim=True).expand_as(bits)
        return torch.stack([self.log_errors[layer, choice], bits, model_bits], dim=-1)


class ConfigurationEncoder(nn.Module):
    """Embeds every layer of a configuration: (layers, fields) integers to (layers, features).

    Each embedding is ``width`` wide, 8 in the paper's code; ``measures`` are added to them.
    """

    offsets: Tensor
    places: Tensor

    def __init__(
        self,
        layers: LayerDescriptions,
        space: ConfigurationSpace,
        width: int = 8,
        measures: ContinuousMeasures | None = None,
    ) -> None:
        super().__init__()
        sizes = [*space.cardinalities, len(layers.types), int(layers.block_index.max()) + 1]
        # All embeddings are rows of one table: one look-up, where seven and their
        # concatenation would each wait for the GPU's launch.
        self.table = nn.Embedding(sum(sizes), width)
        starts = torch.tensor([0, *sizes]).cumsum(0)[:-1]
        fields = len(space.fields)
        places = torch.stack([layers.type_index, layers.block_index], dim=-1) + starts[fields:]
        self.register_buffer("offsets", starts[:fields], persistent=False)
        self.register_buffer("places", places, persistent=False)
        self.measures = measures
        self.features = len(sizes) * width
        if measures is not None:
            self.features += ContinuousMeasures.COUNT

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of :attr:`table` that make z_i (one per field), m_i and b_i, in that order.

        (..., layers, fields) int64, from the space's ``to_indices``, to (..., layers, fields + 2).
        """
        places = self.places.expand(*indices.shape[:-1], -1)
        return torch.cat([indices + self.offsets, places], dim=-1)

    def forward(self, indices: Tensor) -> Tensor:
        """Q, (..., layers, features), for the indices that :meth:`rows` takes."""
        encoding = self.table(self.rows(indices)).flatten(-2)
        if self.measures is None:
            return encoding
        return torch.cat([encoding, self.measures(indices).to(encoding.dtype)], dim=-1)


def _standardized(values: Tensor, over: Tensor) -> Tensor:
    return (values - over.mean()) / over.std()
