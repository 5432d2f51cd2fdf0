"""The Pareto search over configurations: integers, losses and costs only, nothing of models."""

from coalora_lib.search.acquisition import expected_hypervolume_improvement
from coalora_lib.search.alternatives import STRATEGIES, ScoredSet
from coalora_lib.search.cost import Cost
from coalora_lib.search.moves import Moves, Neighbourhood, finite_differences, moves_from
from coalora_lib.search.pareto import (
    hypervolume,
    pareto_front,
    reference_point,
    segment_pareto_filter,
)
from coalora_lib.search.round import Round, SearchPlan, extend, search_round
from coalora_lib.search.surrogate import Surrogate
from coalora_lib.search.walk import Acquisition, Proposal, propose, walk

__all__ = [
    "STRATEGIES",
    "Acquisition",
    "Cost",
    "Moves",
    "Neighbourhood",
    "Proposal",
    "Round",
    "ScoredSet",
    "SearchPlan",
    "Surrogate",
    "expected_hypervolume_improvement",
    "extend",
    "finite_differences",
    "hypervolume",
    "moves_from",
    "pareto_front",
    "propose",
    "reference_point",
    "search_round",
    "segment_pareto_filter",
    "walk",
]
