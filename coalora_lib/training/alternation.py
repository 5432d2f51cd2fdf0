"""The search between stretches of training: score the set, propose, score, filter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from coalora_lib.adapter import CoaLora, describe_layers
from coalora_lib.configuration import (
    CHOICES,
    FIELD_SIZES,
    LayerConfig,
    MeanBits,
    from_indices,
    to_indices,
)
from coalora_lib.search import STRATEGIES, ScoredSet, segment_pareto_filter
from coalora_lib.training.evaluation import Examples, evaluate_each


@dataclass(frozen=True)
class SearchPlan:
    """How to search between stretches of training.

    Attributes:
        rounds: stretches of training; a search stands between each two.
        starts: configurations proposed at a time, each by a walk of its own.
        max_steps: longest walk; None walks until no step improves.
        segments: U of the segment filter; None keeps every scored configuration.
        proposals: configurations that a search scores beyond the set: its budget. After each
            ``starts`` of them the surrogate is fitted anew.
        strategy: who proposes, a key of :data:`~coalora_lib.search.STRATEGIES`: "walk", or one
            of those that it is compared with.
    """

    rounds: int
    starts: int
    max_steps: int | None = None
    segments: int | None = 40
    proposals: int = 5
    strategy: str = "walk"

    def __post_init__(self) -> None:
        for name in ("rounds", "starts", "max_steps", "segments", "proposals"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"strategy={self.strategy!r} is not known; allowed: {', '.join(STRATEGIES)}"
            )


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
    """Score the set with the current adapters, propose and score in turn, filter."""
    scored = ScoredSet(
        current,
        score(model, current, scoring),
        MeanBits(model.sizes),
        FIELD_SIZES * len(model.layer_names),
        like_coordinates(model.layer_names),
    )
    scored = extend(scored, lambda proposed: score(model, proposed, scoring), search, seed)
    everything = scored.configurations
    points = torch.stack([scored.losses, scored.bits_of(everything)], dim=1)
    kept = torch.arange(len(points))
    if search.segments is not None:
        kept = segment_pareto_filter(points, search.segments)
    return Round(everything, *points.T, len(everything) - len(current), kept)


def extend(
    scored: ScoredSet, score: Callable[[Tensor], Tensor], search: SearchPlan, seed: int
) -> ScoredSet:
    """Propose and score configurations in turn until the plan's budget is spent.

    Args:
        scored: the set to begin with.
        score: the loss of (k, d) proposals, (k,).
        search: strategy, budget and sizes.
        seed: of the strategy.

    Returns:
        The set with what was proposed behind; fewer than the budget if the strategy has no more to
        propose.
    """
    wanted = len(scored.losses) + search.proposals
    while (count := len(scored.losses)) < wanted:
        proposed = STRATEGIES[search.strategy](
            scored, min(search.starts, wanted - count), search.max_steps, seed + count
        )
        if len(proposed) == 0:
            break
        scored = scored.extended(proposed, score(proposed))
    return scored


def like_coordinates(layer_names: Sequence[str]) -> Tensor:
    """Coordinates of the same field in layers of the same module type: (5 * layers,) groups.

    The loss minds a field of all query layers about as quickly as of one of them; tied so, a
    handful of length scales is fitted instead of hundreds.
    """
    kinds = describe_layers(layer_names).type_index
    return (kinds[:, None] * len(FIELD_SIZES) + torch.arange(len(FIELD_SIZES))).flatten()


def score(model: CoaLora, configurations: Tensor, scoring: Examples) -> Tensor:
    """f1 of each configuration, (n, 5 * layers) to (n,) float64: the loss on fixed examples."""
    bar = tqdm(configurations, "scoring", disable=None, leave=False)
    found = evaluate_each(model, scoring, (from_indices(row) for row in bar), batch_size=512)
    return torch.tensor([each.loss for each in found], dtype=torch.float64)


def to_flat(configurations: Sequence[Sequence[LayerConfig]]) -> Tensor:
    """Configurations as the search's integers: (n, 5 * layers) int64."""
    flat = [to_indices(configuration).flatten() for configuration in configurations]
    return torch.stack(flat) if flat else torch.empty(0, len(CHOICES), dtype=torch.int64)
