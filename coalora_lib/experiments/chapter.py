"""How a chapter begins: its parameters checked, its random state set, its libraries quiet."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from coalora_lib.experiments.plotting import use_style
from coalora_lib.experiments.profiles import CHAPTER_PROFILES, PROFILES, Profile
from coalora_lib.tasks import TASKS

#: What a chapter may be run on: what has classes.
CHAPTER_DATASETS = ["embedded", *(name for name, task in TASKS.items() if task.labels)]
#: What papermill puts on top of the cell that carries the parameters it was given.
INJECTED_MARK = "# Parameters\n"
#: The parameters that the stored outputs were made with.
PUBLISHED = {"profile": "quick", "seed": 0, "dataset": "embedded"}


@dataclass(frozen=True)
class Run:
    """A chapter's checked parameters."""

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


def begin(namespace: Mapping[str, Any], *names: str) -> Run:
    """Check a chapter's parameters and start it.

    Args:
        namespace: the notebook's ``globals()``.
        names: the parameters the chapter has, of those in its cell tagged ``parameters``.

    Returns:
        The profile, seed and data set asked for; torch is seeded.

    Raises:
        ValueError: papermill was given a name that the chapter does not have, or a value that is
            not allowed; what is allowed is listed.
    """
    for name in injected_names(namespace.get("In", [])):
        if name not in names:
            raise ValueError(f"this chapter has no parameter {name!r}; allowed: {', '.join(names)}")
    given = {name: namespace[name] for name in names}
    run = Run(
        profile=PROFILES[_one_of("profile", given["profile"], CHAPTER_PROFILES)],
        seed=_seed(given["seed"]),
        dataset=_one_of("dataset", given.get("dataset", "embedded"), CHAPTER_DATASETS),
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    use_style()
    torch.manual_seed(run.seed)
    return run


def injected_names(history: list[str]) -> list[str]:
    """The names assigned by papermill's cell, read off the notebook's history of inputs."""
    return [
        target.id
        for source in history
        if source.startswith(INJECTED_MARK)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


def _one_of(name: str, value: Any, allowed) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; allowed: {', '.join(allowed)}")
    return value


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise ValueError(f"seed={value!r} is not known; allowed: integers from 0 to 4294967295")
    return value
