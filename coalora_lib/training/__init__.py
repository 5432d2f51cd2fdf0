"""Training over a set of configurations with the search between, baselines, evaluation."""

from coalora_lib.training.evaluation import Evaluation, evaluate
from coalora_lib.training.loop import train
from coalora_lib.training.measures import fisher_importance, mean_inputs
from coalora_lib.training.plan import History, TrainingPlan

__all__ = [
    "Evaluation",
    "History",
    "TrainingPlan",
    "evaluate",
    "fisher_importance",
    "mean_inputs",
    "train",
]
