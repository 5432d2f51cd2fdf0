"""What every method of a comparison shares: data, model, error table, configurations, plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.allocation import allocate, error_table, layer_sensitivities, spread
from coalora_lib.experiments.profiles import Run
from coalora_lib.experiments.similarity import ScoredPairs
from coalora_lib.kinds import Examples, NextToken, TaskKind, get_kind
from coalora_lib.spaces import (
    NORMAL_FLOAT,
    Configuration,
    ConfigurationSpace,
    get_space,
    random_at_bits,
)
from coalora_lib.tasks import (
    TASKS,
    TEXTS,
    Pretrained,
    TaskSplits,
    kinds_of,
    load_pretrained,
    load_task,
    similarity_pairs,
)
from coalora_lib.training import (
    InputMoments,
    TrainingPlan,
    input_moments,
    mean_inputs,
    with_aims,
)
from coalora_lib.training.alternation import losses
from coalora_lib.training.batches import collate
from coalora_lib.training.evaluation import pad_token_of

#: The fewest and the most bits that arbitrary configurations are drawn at.
ARBITRARY_BITS = (2.1, 5.0)
#: What a model's cache may hold: of a small model, the restored weights of a whole training set.
CACHE_BYTES = 2**32
#: Training examples that mean inputs are measured on; a mean over their thousands of tokens has a
#: standard error of a few percent of a feature's spread.
MEAN_EXAMPLES = 512
#: Training examples that whatever takes second moments is made from, closed form and fits: of
#: sentences, some 50,000 tokens, which are 36 for each of the widest layer's inputs.
FITTED_EXAMPLES = 4096
#: Tokens that a decoder is fitted in order on, at most. Each of Qwen2.5-1.5B's takes 6 MB: 3 MB for
#: the outputs of its layers, the rest for logits (measured on one and three layers). With 19 GB of
#: metrics and 13 GB of weights that is 56 GB, less than a GPU of 80 GB has.
FITTED_TOKENS = 4096
#: Examples that sensitivities are measured on.
SENSITIVITY_EXAMPLES = 256
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
        objective: the profile's kind of task; of "next-token" it aims at the pre-trained model.
        pairs: of texts whose likeness people have scored, for embeddings; None elsewhere, and
            where there are none at hand.
    """

    run: Run
    splits: TaskSplits
    train: Examples = field(repr=False)
    scoring: Examples = field(repr=False)
    validation: Examples = field(repr=False)
    weights: dict[str, Tensor] = field(repr=False)
    errors: Tensor = field(repr=False)
    objective: TaskKind = field(repr=False)
    pairs: ScoredPairs | None = field(default=None, repr=False)
    space: ConfigurationSpace = NORMAL_FLOAT
    _allocated: dict[float, Configuration] = field(default_factory=dict, repr=False)
    _means: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _moments: list[InputMoments] = field(default_factory=list, repr=False)

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
        known = {
            "rank": profile.rank,
            "alpha": profile.alpha,
            "space": self.space,
            "cache_bytes": CACHE_BYTES,
        }
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

    def by_sensitivity(self) -> Setup:
        """The same data and model, with each layer's errors weighted by their effect on the model's
        loss.

        See :func:`~coalora_lib.allocation.layer_sensitivities`; measured on examples held out for
        scoring, with the mean of every layer's output corrected, and no adapter.
        """
        settings = {"rank": 1, "adjuster": "none", "bias_correction": True}
        model = self.new_model(mean_inputs=self.mean_inputs, **settings)
        seen = self.scoring[:SENSITIVITY_EXAMPLES]

        weights = layer_sensitivities(
            self.errors,
            self.shapes,
            lambda asked: losses(model, asked, seen, self.objective),
            self.space,
        )
        return replace(self, errors=self.errors * weights[:, None].to(self.errors), _allocated={})

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

    @property
    def moments(self) -> InputMoments:
        """E[x] and E[x x^T] of each layer of the pre-trained model, on training examples."""
        if not self._moments:
            seen = self.train[:FITTED_EXAMPLES]
            self._moments.append(input_moments(self.new_base(), list(self.weights), seen))
        return self._moments[0]

    def fitting_batch(self, model: CoaLora) -> Mapping[str, Tensor]:
        """The texts of fits, all at once: the first training examples."""
        count = FITTED_EXAMPLES
        if self.objective.of_tokens:
            count = max(1, FITTED_TOKENS // self.run.profile.max_length)
        return collate(self.train[:count], pad_token_of(model))

    def training_set(self, budgets: Sequence[float] | None = None) -> list[Configuration]:
        """Allocated at budgets, the profile's by default, and random ones from end to end."""
        budgets = budgets or self.run.profile.training_budgets
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
        ValueError: the profile's kind of task is not the data's; this and OSError also as the
            loaders of :mod:`coalora_lib.tasks`.
    """
    profile = run.profile
    refuse_misfit(run)
    splits = load_task(run.dataset)
    torch.manual_seed(run.seed)
    base, tokenizer = _load(run)
    weights = {name: base.get_submodule(name).weight.detach() for name in adaptable_layers(base)}

    kind = get_kind(profile.kind)
    if isinstance(kind, NextToken):  # its aims are too many to be stored with the examples
        kind = NextToken(base)

    def examples(split: Dataset) -> Examples:
        found = kind.examples(split, tokenizer, profile.max_length)
        return found if isinstance(kind, NextToken) else with_aims(base, found, kind)

    train, scoring, validation = (examples(part) for part in _parts(run, splits))
    scored = similarity_pairs() if run.dataset in TEXTS else None
    pairs = None if scored is None else ScoredPairs.of(scored, examples)
    errors = error_table(weights, pieces=profile.error_pieces)
    return Setup(run, splits, train, scoring, validation, weights, errors, kind, pairs)


def refuse_misfit(run: Run) -> None:
    """A ValueError if the profile's model is not for the data set."""
    profile, allowed = run.profile, kinds_of(run.dataset)
    if profile.kind not in allowed:
        raise ValueError(
            f"profile {profile.name!r} is of kind {profile.kind!r}; data set {run.dataset!r} is "
            f"for {' or '.join(allowed)}"
        )


def _parts(run: Run, splits: TaskSplits) -> tuple[Dataset, Dataset, Dataset]:
    """To train on, to score on, to validate on."""
    profile = run.profile
    train, validation = splits.train.shuffle(seed=run.seed), splits.validation
    first, wanted = profile.scoring_examples, profile.train_examples
    last = None if wanted is None else first + wanted
    return (
        train.select(range(len(train))[first:last]),
        train.select(range(len(train))[:first]),
        validation.select(range(len(validation))[: profile.validation_examples]),
    )


def _load(run: Run) -> Pretrained:
    """The model on the device it will run on."""
    gpu, dtype = torch.cuda.is_available(), getattr(torch, run.profile.dtype)
    if gpu and dtype == torch.float64:
        dtype = torch.float32
    labels = TASKS[run.dataset].labels if run.dataset in TASKS else 2
    options = {} if labels is None else {"num_labels": labels}
    found = load_pretrained(run.profile.model, run.profile.kind, dtype, **options)
    found.model.to("cuda" if gpu else "cpu")
    return found
