"""The search over a model's configurations: how it scores them, and which ones it may choose."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from coalora_lib.adapter import CoaLora, describe_layers
from coalora_lib.kinds import Examples, TaskKind
from coalora_lib.search import Round, ScoredSet, SearchPlan, search_round
from coalora_lib.spaces import Configuration, ConfigurationSpace, mean_bits_cost
from coalora_lib.training.evaluation import evaluate_each

#: Examples in a forward pass while scoring: as many as the standard profile scores on, so that each
#: configuration takes one pass.
SCORING_BATCH = 512
#: Gives the losses of configurations on examples, in their order.
Scorer = Callable[[CoaLora, Sequence[Configuration], Examples, TaskKind | None], Iterable[float]]


def search_model(
    model: CoaLora,
    configurations: Tensor,
    plan: SearchPlan,
    scoring: Examples,
    seed: int,
    kind: TaskKind | None = None,
    scorer: Scorer | None = None,
) -> Round:
    """Score a set, (n, layers * fields) int64, with the current adapters and search from it.

    The losses are on the examples ``scoring``, and by default measured here; the cost is a
    configuration's mean bits.
    """
    scoring_by = partial(score, model, scoring=scoring, kind=kind, scorer=scorer)
    scored = ScoredSet(
        configurations,
        scoring_by(configurations),
        mean_bits_cost(model.space, model.shapes),
        model.space.cardinalities * len(model.layer_names),
        length_scale_groups(model.layer_names, model.space),
    )
    return search_round(scored, scoring_by, plan, seed)


def length_scale_groups(layer_names: Sequence[str], space: ConfigurationSpace) -> Tensor:
    """Which coordinates share a length scale: (layers * fields,) int64 groups.

    Coordinates of the same field in layers of the same module type do: the loss is about as
    sensitive to a field in every query layer as in one of them.
    """
    kinds = describe_layers(layer_names).type_index
    fields = len(space.fields)
    return (kinds[:, None] * fields + torch.arange(fields)).flatten()


def score(
    model: CoaLora,
    configurations: Tensor,
    scoring: Examples,
    kind: TaskKind | None = None,
    scorer: Scorer | None = None,
) -> Tensor:
    """f1 of (n, layers * fields) configurations: (n,) float64, losses on fixed examples."""
    each = [model.space.from_indices(row) for row in configurations]
    found = (scorer or losses)(model, each, scoring, kind)
    return torch.tensor(list(found), dtype=torch.float64)


def losses(
    model: CoaLora,
    configurations: Iterable[Configuration],
    scoring: Examples,
    kind: TaskKind | None = None,
) -> Iterable[float]:
    """The :data:`Scorer` of one process."""
    bar = tqdm(configurations, "scoring", disable=None, leave=False)
    for each in evaluate_each(model, scoring, bar, batch_size=SCORING_BATCH, kind=kind):
        yield each.loss
