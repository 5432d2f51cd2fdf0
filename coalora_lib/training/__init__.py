"""Training over a set of configurations with the search between, baselines, evaluation."""

from coalora_lib.training.aims import with_aims
from coalora_lib.training.evaluation import Evaluation, evaluate
from coalora_lib.training.loop import train
from coalora_lib.training.measures import (
    InputMoments,
    fisher_importance,
    input_moments,
    mean_inputs,
)
from coalora_lib.training.plan import History, TrainingPlan
from coalora_lib.training.polish import polish

__all__ = [
    "Evaluation",
    "History",
    "InputMoments",
    "TrainingPlan",
    "evaluate",
    "fisher_importance",
    "input_moments",
    "mean_inputs",
    "polish",
    "train",
    "with_aims",
]
