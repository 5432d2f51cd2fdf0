"""What a run is asked for: a size, a seed, a data set."""

from __future__ import annotations

from dataclasses import dataclass

from coalora_lib.experiments.profiles import Profile

#: The parameters that the stored outputs of the chapters were made with.
PUBLISHED = {"profile": "quick", "seed": 0, "dataset": "embedded"}


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

    @property
    def published(self) -> bool:
        """Whether the parameters are those of the stored outputs, which the text speaks of.

        An assert that holds a sentence about a number asks for this first: with another model,
        seed or data set the number, and so the sentence, may be another.
        """
        given = {"profile": self.profile.name, "seed": self.seed, "dataset": self.dataset}
        return given == PUBLISHED
