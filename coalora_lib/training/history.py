"""What a training run leaves beside the trained model."""

from __future__ import annotations

from dataclasses import dataclass

from coalora_lib.search import Round
from coalora_lib.spaces import Configuration


@dataclass(frozen=True)
class History:
    """What a run leaves beside the trained model.

    Attributes:
        losses: of each step, averaged over its configurations.
        configurations: the training set at the end.
        rounds: the searches, in order.
        search_seconds: wall time that they took, since the run was started or resumed.
    """

    losses: list[float]
    configurations: list[Configuration]
    rounds: list[Round]
    search_seconds: float = 0.0
