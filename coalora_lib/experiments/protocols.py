"""The five experiments on models: what their runs train on and are evaluated on.

Each experiment has a **protocol**, whose name its records carry: the rules of the run that decide
its numbers. A table has records of one protocol only. Raise the number at its end, by hand, when
the results of a new run are no longer comparable with those of stored ones: another loss, another
optimizer, other arbitrary configurations, a repaired fault in what trains or in what is evaluated.
Leave it when results are the same up to rounding: renamed code, a faster path, another device,
newer versions of packages.

Under ``book/results``: "comparison-1" are the earlier runs of chapter 6, before the residual start
and the arbitrary configurations of today; "options-1" and "search-1" are of the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from coalora_lib.allocation import spread
from coalora_lib.experiments.profiles import Profile
from coalora_lib.experiments.setup import ARBITRARY_SEED, Setup
from coalora_lib.spaces import GGUF, Configuration, random_configuration

#: A configuration to evaluate on, and the budget that it is allocated at, None if arbitrary.
Target = tuple[float | None, Configuration]

#: Arbitrary configurations that the adapter's options are evaluated on.
UNIFORM_DRAWS = 8
#: Bits of the allocated configurations that searches are evaluated on; no profile trains on them.
UNSEEN_BUDGETS = (2.3, 2.4, 2.6, 2.8, 3.0, 3.3, 3.6, 4.0, 4.5)
#: Bits of GGUF types that are trained on and compared at: rows of 384 weights, which MiniLM has,
#: take no type below 4.25 bits, and all its layers together have 3.71 at least.
GGUF_TRAINING_BUDGETS, GGUF_BUDGETS = spread(3.8, 8.5, 25), (3.8, 4.2, 4.8, 5.5, 8.5)
#: What every engine that reads GGUF files has, and every row of a transformer can take.
GGUF_UNIFORM = ("Q4_0", "Q8_0")


@dataclass(frozen=True)
class Experiment:
    """What the runs over a set of one experiment share.

    Attributes:
        first_set: the training set until a search changes it.
        targets: the configurations of the evaluation.
        twins: they are also evaluated on the first set's configurations and unseen ones like them.
        unmet: a target that a run has trained on or scored is left out.
        kinds: of task that they are for.
    """

    protocol: str
    first_set: Callable[[Setup], list[Configuration]]
    targets: Callable[[Setup], list[Target]]
    twins: bool = False
    unmet: bool = False
    kinds: Sequence[str] = ("single-label", "causal-lm")


def _targets(
    setup: Setup, budgets: Sequence[float], arbitrary: Sequence[Configuration]
) -> list[Target]:
    allocated: list[Target] = [(budget, setup.allocated(budget)) for budget in budgets]
    return allocated + [(None, configuration) for configuration in arbitrary]


def _uniform(setup: Setup) -> list[Configuration]:
    """Each layer's choice drawn uniformly: mean bits near the middle of the range."""
    generator = torch.Generator().manual_seed(ARBITRARY_SEED + setup.run.seed)
    drawn = range(UNIFORM_DRAWS)
    return [random_configuration(setup.shapes, generator, setup.space) for _ in drawn]


#: The methods and the ablations of chapter 6.
COMPARISON = Experiment(
    "comparison-2",
    Setup.training_set,
    lambda setup: _targets(setup, setup.run.profile.budgets, setup.arbitrary()),
    twins=True,
)
#: The adapter's options, chapter 3.
OPTIONS = Experiment(
    "options-2",
    Setup.training_set,
    lambda setup: _targets(setup, setup.run.profile.budgets, _uniform(setup)),
)
#: Ways to extend the training set, chapter 4. It starts with allocated configurations alone.
SEARCH = Experiment(
    "search-2",
    lambda setup: [setup.allocated(budget) for budget in setup.run.profile.training_budgets],
    lambda setup: _targets(setup, UNSEEN_BUDGETS, setup.arbitrary()),
    unmet=True,
)
#: Ways to give a quantized model its embeddings back, or its distributions of the next token.
RECOVERY = Experiment(
    "recovery-1",
    Setup.training_set,
    lambda setup: _targets(setup, setup.run.profile.budgets, setup.arbitrary()),
    kinds=("embedding", "next-token"),
)
#: The same over the types of GGUF files; evaluated also with one type for all layers.
DEPLOYMENT = replace(
    RECOVERY,
    protocol="deployment-1",
    first_set=lambda setup: setup.training_set(GGUF_TRAINING_BUDGETS),
    targets=lambda setup: _targets(
        setup, GGUF_BUDGETS, [everywhere(setup, each) for each in GGUF_UNIFORM]
    ),
    kinds=("embedding",),
)


def everywhere(setup: Setup, kind: str) -> Configuration:
    """One GGUF type for all layers."""
    return [GGUF.make_choice(kind)] * len(setup.shapes)


def sized_for_search(profile: Profile, epochs: float) -> Profile:
    """A profile as :data:`SEARCH` runs it: searches between quarters of the training."""
    return replace(
        profile,
        epochs=epochs,
        # What a search scores on decides its time; 512 are the standard profile's.
        scoring_examples=min(profile.scoring_examples, 512),
        search=replace(profile.search, rounds=4),
    )
