"""What a run is asked for: a size, a seed, a data set."""

from __future__ import annotations

from dataclasses import dataclass

from coalora_lib.experiments.profiles import Profile


@dataclass(frozen=True)
class Run:
    """A run's checked parameters.

    Attributes:
        profile: sizes and hyperparameters.
        seed: of everything random, 0 to 4294967295.
        dataset: "embedded", or a name in :data:`coalora_lib.tasks.TASKS`.
    """

    profile: Profile
    seed: int
    dataset: str = "embedded"
