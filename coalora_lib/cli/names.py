"""What options allow, looked up when a value is checked: help would wait for these imports."""

from __future__ import annotations

from collections.abc import Collection

#: Left out of the arms if none is named, since it is slow.
SLOW_ARM = "search-local-search"


def profiles() -> Collection[str]:
    """Sizes of a run."""
    from coalora_lib.experiments.profiles import PROFILES

    return PROFILES


def chapter_profiles() -> Collection[str]:
    """Sizes that a chapter may be run with."""
    from coalora_lib.experiments.profiles import CHAPTER_PROFILES

    return CHAPTER_PROFILES


def datasets() -> Collection[str]:
    """Data of experiments."""
    from coalora_lib.tasks import TASKS

    return ["embedded", *TASKS]


def chapter_datasets() -> Collection[str]:
    """Data that a chapter may be run on."""
    from coalora_lib.experiments.profiles import CHAPTER_DATASETS

    return CHAPTER_DATASETS


def compared() -> Collection[str]:
    """Methods of the comparisons."""
    from coalora_lib.experiments.methods import methods_of

    return methods_of("main", "ablation", "fitted", "recovery", "deployment")


def arms() -> Collection[str]:
    """Ways to extend the training set."""
    from coalora_lib.experiments.methods import methods_of

    return methods_of("search")


def metrics() -> Collection[str]:
    """What a table of records may be of."""
    from coalora_lib.batch.results import METRICS

    return METRICS


def strategies() -> Collection[str]:
    """What is compared on synthetic losses."""
    from coalora_lib.search import STRATEGIES
    from coalora_lib.testbed.comparison import ALLOCATION

    return [*STRATEGIES, ALLOCATION]


def full_sizes() -> Collection[str]:
    """Models that can be measured at full size."""
    from coalora_lib.experiments.scale import FULL_SIZES

    return FULL_SIZES
