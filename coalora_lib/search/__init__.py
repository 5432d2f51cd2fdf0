"""The Pareto search over configurations: integers and numbers only, nothing of models."""

from coalora_lib.search.acquisition import expected_hypervolume_improvement
from coalora_lib.search.pareto import (
    hypervolume,
    pareto_front,
    reference_point,
    segment_pareto_filter,
)
from coalora_lib.search.surrogate import Surrogate
from coalora_lib.search.walk import Proposal, finite_differences, propose

__all__ = [
    "Proposal",
    "Surrogate",
    "expected_hypervolume_improvement",
    "finite_differences",
    "hypervolume",
    "pareto_front",
    "propose",
    "reference_point",
    "segment_pareto_filter",
]
