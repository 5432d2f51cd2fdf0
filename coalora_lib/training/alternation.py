"""The search between stretches of training: score the set, propose, score, filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coalora_lib.adapter import CoaLora
from coalora_lib.configuration import (
    CHOICES,
    FIELD_SIZES,
    LayerConfig,
    bits_of_indices,
    from_indices,
    to_indices,
)
from coalora_lib.search import propose, segment_pareto_filter
from coalora_lib.training.evaluation import Examples, evaluate


@dataclass(frozen=True)
class SearchPlan:
    """How to search between stretches of training.

    Attributes:
        rounds: stretches of training; a search stands between each two.
        starts: walks of a search.
        max_steps: longest walk.
        segments: U of the segment filter.
    """

    rounds: int
    starts: int
    max_steps: int
    segments: int = 40


@dataclass(frozen=True)
class Round:
    """What one search saw and did.

    Attributes:
        configurations: (n, 5 * layers) the set before the search and, last, what it proposed.
        losses, bits: (n,) scored with the adapters of that moment.
        proposed: how many of the rows were proposed.
        kept: rows that the filter kept: the next set.
    """

    configurations: Tensor
    losses: Tensor
    bits: Tensor
    proposed: int
    kept: Tensor


def search_round(
    model: CoaLora, current: Tensor, search: SearchPlan, scoring: Examples, seed: int
) -> Round:
    """Score the set with the current adapters, propose, score the proposals, filter."""

    def bits_of(indices: Tensor) -> Tensor:
        return bits_of_indices(indices, model.sizes)

    losses = score(model, current, scoring)
    choices = FIELD_SIZES * len(model.layer_names)
    proposal = propose(
        current, losses, bits_of, choices, search.starts, search.max_steps, seed=seed
    )
    everything = torch.cat([current, proposal.configurations])
    losses = torch.cat([losses, score(model, proposal.configurations, scoring)])
    points = torch.stack([losses, bits_of(everything)], dim=1)
    kept = segment_pareto_filter(points, search.segments)
    return Round(everything, *points.T, len(proposal.configurations), kept)


def score(model: CoaLora, configurations: Tensor, scoring: Examples) -> Tensor:
    """f1 of each configuration, (n, 5 * layers) to (n,) float64: the loss on fixed examples."""
    losses = [evaluate(model, scoring, from_indices(row)).loss for row in configurations]
    return torch.tensor(losses, dtype=torch.float64)


def to_flat(configurations: Sequence[Sequence[LayerConfig]]) -> Tensor:
    """Configurations as the search's integers: (n, 5 * layers) int64."""
    flat = [to_indices(configuration).flatten() for configuration in configurations]
    return torch.stack(flat) if flat else torch.empty(0, len(CHOICES), dtype=torch.int64)
