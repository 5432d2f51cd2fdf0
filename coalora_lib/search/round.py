"""A search round: propose and score in turn, then filter."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coalora_lib.search.alternatives import STRATEGIES, ScoredSet
from coalora_lib.search.cost import finite_costs
from coalora_lib.search.pareto import segment_pareto_filter
from coalora_lib.validation import check_number


@dataclass(frozen=True)
class SearchPlan:
    """How to search between stretches of training; ValueError or TypeError for what may not be."""

    rounds: int  #: stretches of training; a search stands between each two
    restarts: int  #: configurations proposed at a time, each by a walk of its own
    max_steps: int | None = None  #: longest walk; None walks until no step improves
    segments: int | None = 40  #: U of the segment filter; None keeps every scored configuration
    proposals: int = 5  #: configurations that a search scores beyond the set: its budget
    strategy: str = "walk"  #: who proposes, a key of :data:`~coalora_lib.search.STRATEGIES`

    def __post_init__(self) -> None:
        for name in ("rounds", "restarts", "max_steps", "segments", "proposals"):
            value = getattr(self, name)
            if value is not None or name not in ("max_steps", "segments"):
                check_number(name, value, 1, whole=True)
        if not isinstance(self.strategy, str) or self.strategy not in STRATEGIES:
            raise ValueError(
                f"strategy={self.strategy!r:.80} is not known; allowed: {', '.join(STRATEGIES)}"
            )


@dataclass(frozen=True)
class Round:
    """The scored set after one search."""

    configurations: Tensor  #: (n, d), the set before the search and, last, what it proposed
    losses: Tensor  #: (n,), all under the same adapters
    costs: Tensor  #: (n,)
    proposed: int  #: how many of the rows were proposed
    kept: Tensor  #: rows that the filter kept: the next set


def search_round(
    scored: ScoredSet, score: Callable[[Tensor], Tensor], plan: SearchPlan, seed: int
) -> Round:
    """:func:`extend` a scored set, then apply the segment filter."""
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
    returned; fewer than the budget if the strategy has no more to propose. ValueError if a scored
    configuration is not allowed.
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
