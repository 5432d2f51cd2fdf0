"""Training over a set of configurations, scoring, and the alternation with the search."""

from coalora_lib.training.alternation import Round, SearchPlan, alternate
from coalora_lib.training.batches import tokenize
from coalora_lib.training.importance import fisher_importance
from coalora_lib.training.loop import Evaluation, TrainingPlan, evaluate, train

__all__ = [
    "Evaluation",
    "Round",
    "SearchPlan",
    "TrainingPlan",
    "alternate",
    "evaluate",
    "fisher_importance",
    "tokenize",
    "train",
]
