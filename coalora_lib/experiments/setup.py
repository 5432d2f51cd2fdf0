"""What every method of a comparison shares: data, model, error table, configurations, plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.allocation import allocate, error_table, spread
from coalora_lib.experiments.profiles import Run
from coalora_lib.kinds import Examples, get_kind
from coalora_lib.spaces import (
    NORMAL_FLOAT,
    Configuration,
    ConfigurationSpace,
    get_space,
    random_at_bits,
)
from coalora_lib.tasks import (
    TASKS,
    Pretrained,
    TaskSplits,
    load_classifier,
    load_language_model,
    load_task,
)
from coalora_lib.training import TrainingPlan, mean_inputs

#: The fewest and the most bits that arbitrary configurations are drawn at.
ARBITRARY_BITS = (2.1, 5.0)
#: Training examples that mean inputs are measured on; a mean over their thousands of tokens has a
#: standard error of a few percent of a feature's spread.
MEAN_EXAMPLES = 512
#: Added to a run's seed where twins and arbitrary configurations are drawn, apart from the training
#: set, whose generator has the seed itself, and from each other: seeds of runs are small.
TWINS_SEED, ARBITRARY_SEED = 2**30, 2**31


@dataclass(frozen=True)
class Setup:
    """The shared ground of a comparison; only the method may differ on it.

    Attributes:
        train, scoring, validation: tokenized examples. ``scoring`` is held out of the training
            split for the search; ``validation`` is what results are reported on.
        weights: the pre-trained weight of each adapted layer.
        errors: (layers, choices), the squared quantization errors in the space.
    """

    run: Run
    splits: TaskSplits
    train: Examples = field(repr=False)
    scoring: Examples = field(repr=False)
    validation: Examples = field(repr=False)
    weights: dict[str, Tensor] = field(repr=False)
    errors: Tensor = field(repr=False)
    space: ConfigurationSpace = NORMAL_FLOAT
    _allocated: dict[float, Configuration] = field(default_factory=dict, repr=False)
    _means: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each layer's weight."""
        return [tuple(weight.shape) for weight in self.weights.values()]

    @property
    def sizes(self) -> list[int]:
        """Number of weights of each layer."""
        return [weight.numel() for weight in self.weights.values()]

    @property
    def plan(self) -> TrainingPlan:
        """The training plan that all methods get."""
        profile = self.run.profile
        return TrainingPlan(
            steps=math.ceil(profile.epochs * (len(self.train) // profile.batch_size)),
            batch_size=profile.batch_size,
            configurations_per_step=profile.configurations_per_step,
            learning_rate=profile.learning_rate,
            cuda_graphs=True,
            seed=self.run.seed,
        )

    def plan_of(self, steps: int) -> TrainingPlan:
        """The same plan, shorter: for a demonstration."""
        return replace(self.plan, steps=steps)

    def new_model(self, **options) -> CoaLora:
        """The pre-trained model with fresh adapters, the same ones at every call.

        The options are :meth:`CoaLora.attach`'s; rank, alpha and space are the set-up's by default.
        """
        profile = self.run.profile
        known = {"rank": profile.rank, "alpha": profile.alpha, "space": self.space}
        return CoaLora.attach(self.new_base(), errors=self.errors, **dict(known, **options))

    def new_base(self) -> PreTrainedModel:
        """The pre-trained model with a fresh head, the same one at every call."""
        torch.manual_seed(self.run.seed)
        return _load(self.run).model

    def with_space(self, space: str) -> Setup:
        """The same ground in another space: errors and allocations are its own."""
        if space == self.space.name:
            return self
        other = get_space(space)
        errors = error_table(self.weights, other, pieces=self.run.profile.error_pieces)
        return replace(self, space=other, errors=errors, _allocated={})

    def allocated(self, budget: float) -> Configuration:
        """The least-error configuration within a budget in mean bits per parameter."""
        if budget not in self._allocated:
            found = allocate(self.errors, self.shapes, budget, self.space)
            self._allocated[budget] = found.configs
        return self._allocated[budget]

    @property
    def mean_inputs(self) -> dict[str, Tensor]:
        """E[x] of each layer of the pre-trained model, on the first training examples."""
        if not self._means:
            layers, seen = list(self.weights), self.train[:MEAN_EXAMPLES]
            self._means.update(mean_inputs(self.new_base(), layers, seen))
        return dict(self._means)

    def training_set(self) -> list[Configuration]:
        """Allocated at the profile's budgets, and random ones from end to end of them."""
        budgets = self.run.profile.training_budgets
        return [self.allocated(budget) for budget in budgets] + self._random_beside(budgets)

    def twins(self) -> list[tuple[Configuration, Configuration]]:
        """Each configuration of the first training set, and one like it that is not in there.

        An allocated one's twin is allocated half-way to the next budget, above and below in turn; a
        random one's is another random one at the same bits.
        """
        budgets = self.run.profile.training_budgets
        half = (budgets[-1] - budgets[0]) / max(1, len(budgets) - 1) / 2
        unseen = [
            self.allocated(budget + (half if i % 2 == 0 and i + 1 < len(budgets) else -half))
            for i, budget in enumerate(budgets)
        ]
        unseen += self._random_beside(budgets, TWINS_SEED)
        return list(zip(self.training_set(), unseen, strict=True))

    def arbitrary(self) -> list[Configuration]:
        """Random configurations to evaluate on, drawn apart from the training set's."""
        count = self.run.profile.arbitrary_configurations
        return self._random(ARBITRARY_BITS, count, ARBITRARY_SEED)

    def _random_beside(self, budgets: Sequence[float], seed: int = 0) -> list[Configuration]:
        ends = budgets[0], budgets[-1]
        return self._random(ends, self.run.profile.random_configurations, seed)

    def _random(self, ends: tuple[float, float], count: int, seed: int) -> list[Configuration]:
        """At equally spaced bits, the seed added to the run's."""
        generator = torch.Generator().manual_seed(seed + self.run.seed)
        budgets = spread(*ends, count)
        return [random_at_bits(self.shapes, bits, generator, self.space) for bits in budgets]


def prepare(run: Run) -> Setup:
    """Load data and model for a run, and measure the model's quantization errors.

    Raises:
        ValueError: the profile's model is a classifier and the data have no labels, or the other
            way round; this and OSError also as the loaders of :mod:`coalora_lib.tasks`.
    """
    profile = run.profile
    refuse_misfit(run)
    splits = load_task(run.dataset)
    torch.manual_seed(run.seed)
    base, tokenizer = _load(run)
    weights = {name: base.get_submodule(name).weight.detach() for name in adaptable_layers(base)}
    train, scoring, validation = _examples(run, splits, tokenizer)
    errors = error_table(weights, pieces=profile.error_pieces)
    return Setup(run, splits, train, scoring, validation, weights, errors)


def refuse_misfit(run: Run) -> None:
    """A ValueError if the profile's model is not for the data set."""
    profile = run.profile
    if profile.language_model != (classes_of(run.dataset) is None):
        kind = "a language model" if profile.language_model else "a classifier"
        raise ValueError(
            f"profile {profile.name!r} is of {kind}; data set {run.dataset!r} is not for it"
        )


def _examples(
    run: Run, splits: TaskSplits, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Examples]:
    """To train on, to score on, to validate on."""
    profile = run.profile
    train, validation = splits.train.shuffle(seed=run.seed), splits.validation
    first, wanted = profile.scoring_examples, profile.train_examples
    last = None if wanted is None else first + wanted
    kind = get_kind("single-label" if classes_of(run.dataset) else "causal-lm")
    for split, rows in (
        (train, range(len(train))[first:last]),
        (train, range(first)),
        (validation, range(len(validation))[: profile.validation_examples]),
    ):
        yield kind.examples(split.select(rows), tokenizer, profile.max_length)


def classes_of(dataset: str) -> int | None:
    """Number of classes; None where texts are continued by a language model."""
    return TASKS[dataset].labels if dataset in TASKS else 2


def _load(run: Run) -> Pretrained:
    """The model on the device it will run on."""
    labels = classes_of(run.dataset)
    gpu, dtype = torch.cuda.is_available(), getattr(torch, run.profile.dtype)
    if gpu and dtype == torch.float64:
        dtype = torch.float32
    name = run.profile.model
    found = load_classifier(name, labels, dtype) if labels else load_language_model(name, dtype)
    found.model.to("cuda" if gpu else "cpu")
    return found
