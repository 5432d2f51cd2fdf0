"""A search round: propose and score in turn, then filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coalora_lib.search.alternatives import STRATEGIES, ScoredSet
from coalora_lib.search.cost import finite_costs
from coalora_lib.search.pareto import segment_pareto_filter


@dataclass(frozen=True)
class SearchPlan:
    """How to search between stretches of training.

    Attributes:
        rounds: stretches of training; a search stands between each two.
        restarts: configurations proposed at a time, each by a walk of its own.
        max_steps: longest walk; None walks until no step improves.
        segments: U of the segment filter; None keeps every scored configuration.
        proposals: configurations that a search scores beyond the set: its budget.
        strategy: who proposes, a key of :data:`~coalora_lib.search.STRATEGIES`.

    Raises:
        ValueError: a number is below 1, or the strategy is not known.
    """

    rounds: int
    restarts: int
    max_steps: int | None = None
    segments: int | None = 40
    proposals: int = 5
    strategy: str = "walk"

    def __post_init__(self) -> None:
        for name in ("rounds", "restarts", "max_steps", "segments", "proposals"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"strategy={self.strategy!r} is not known; allowed: {', '.join(STRATEGIES)}"
            )


@dataclass(frozen=True)
class Round:
    """The scored set after one search.

    Attributes:
        configurations: (n, d) the set before the search and, last, what it proposed.
        losses, costs: (n,) of each; all losses under the same adapters.
        proposed: how many of the rows were proposed.
        kept: rows that the filter kept: the next set.
    """

    configurations: Tensor
    losses: Tensor
    costs: Tensor
    proposed: int
    kept: Tensor


def search_round(
    scored: ScoredSet, score: Callable[[Tensor], Tensor], plan: SearchPlan, seed: int
) -> Round:
    """:func:`extend` a scored set, then apply the segment filter.

    Raises:
        ValueError: a scored configuration is not allowed.
    """
    extended = extend(scored, score, plan, seed)
    costs = finite_costs(extended.cost_of, extended.configurations)
    points = torch.stack([extended.losses, costs], dim=1)
    kept = torch.arange(len(points))
    if plan.segments is not None:
        kept = segment_pareto_filter(points, plan.segments)
    proposed = len(points) - len(scored.losses)
    losses, costs = points.unbind(1)
    return Round(extended.configurations, losses, costs, proposed, kept)


def extend(
    scored: ScoredSet, score: Callable[[Tensor], Tensor], plan: SearchPlan, seed: int
) -> ScoredSet:
    """Propose and score configurations in turn until the plan's budget is spent.

    ``score`` gives the losses of (k, d) proposals, (k,). They are at the end of the set that is
    returned; fewer than the budget if the strategy has no more to propose.

    Raises:
        ValueError: a scored configuration is not allowed.
    """
    finite_costs(scored.cost_of, scored.configurations)
    wanted = len(scored.losses) + plan.proposals
    while (count := len(scored.losses)) < wanted:
        proposed = STRATEGIES[plan.strategy](
            scored, min(plan.restarts, wanted - count), plan.max_steps, seed + count
        )
        if len(proposed) == 0:
            break
        scored = scored.extended(proposed, score(proposed))
    return scored
