"""The kinds there are, and which one a model of transformers is for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers.models.auto import modeling_auto as auto

from coalora_lib.kinds.classification import Regression, SeveralLabels, SingleLabel
from coalora_lib.kinds.embedding import Embedding
from coalora_lib.kinds.kind import TaskKind
from coalora_lib.kinds.language import CausalLanguageModel, MaskedLanguageModel, SequenceToSequence
from coalora_lib.kinds.next_token import NextToken
from coalora_lib.kinds.own import Loss, OwnLoss
from coalora_lib.kinds.tokens import Spans, Tokens
from coalora_lib.validation import did_you_mean

_KINDS: dict[str, TaskKind] = {}


def register_kind(kind: TaskKind) -> TaskKind:
    """Make a kind known by its name.

    Raises:
        ValueError: another kind has that name.
    """
    known = _KINDS.setdefault(kind.name, kind)
    if type(known) is not type(kind):
        raise ValueError(f"a kind named {kind.name!r} is registered: {type(known).__name__}")
    return known


def kinds() -> tuple[str, ...]:
    """The names of all kinds."""
    return tuple(_KINDS)


def get_kind(kind: str | TaskKind) -> TaskKind:
    """A kind by its name; one that is given is returned.

    Raises:
        ValueError: there is none of that name; the nearest one is named.
    """
    if isinstance(kind, TaskKind):
        return kind
    if kind not in _KINDS:
        hint = did_you_mean(kind, _KINDS)
        raise ValueError(f"kind={kind!r:.80} is not known{hint}; allowed: {', '.join(_KINDS)}")
    return _KINDS[kind]


for _kind in (
    SingleLabel,
    SeveralLabels,
    Regression,
    Tokens,
    Spans,
    CausalLanguageModel,
    MaskedLanguageModel,
    SequenceToSequence,
    Embedding,
    NextToken,
):
    register_kind(_kind())

#: What transformers' classes are for. A class in several mappings is of the first of them.
_OF_CLASSES: tuple[tuple[Mapping[str, object], str | None], ...] = (
    (auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, None),
    (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, None),
    (auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, None),
    (auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, Tokens.name),
    (auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, Spans.name),
    (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, SequenceToSequence.name),
    (auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, SequenceToSequence.name),
    (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, CausalLanguageModel.name),
    (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, MaskedLanguageModel.name),
    (auto.MODEL_MAPPING_NAMES, Embedding.name),
)
#: Sequence classification is three kinds; the configuration's ``problem_type`` says which.
_OF_PROBLEMS = {
    "single_label_classification": SingleLabel.name,
    "multi_label_classification": SeveralLabels.name,
    "regression": Regression.name,
}


def objective_of(
    model: nn.Module, kind: str | TaskKind | None = None, loss: Loss | None = None
) -> TaskKind:
    """What a model is trained for and measured by.

    Args:
        model: a transformers model.
        kind: by default that of the model's class, see :func:`kind_of`; for a class without a kind,
            the model's own loss.
        loss: a loss of one's own instead.

    Raises:
        ValueError: both are given, or the kind is not known or not for this model.
    """
    if loss is not None:
        if kind is not None:
            raise ValueError(f"kind={kind!r} and loss= are both given; allowed: one of them")
        return OwnLoss(model, loss)
    if kind is not None:
        found = get_kind(kind)
        found.check(model)
        return found
    try:
        return kind_of(model)
    except ValueError:
        return OwnLoss(model)


def kind_of(model: nn.Module) -> TaskKind:
    """The kind that a model of transformers is for: by its class, never by its outputs.

    A classifier of sequences is for ``config.problem_type``; without one, for regression if it has
    a single label, else for single labels.

    Args:
        model: a transformers model, or a subclass of one.

    Raises:
        ValueError: its class has no kind; name the kind.
    """
    for ancestor in type(model).__mro__:
        for mapping, name in _OF_CLASSES:
            if any(_holds(entry, ancestor.__name__) for entry in mapping.values()):
                return get_kind(name or _OF_PROBLEMS[_problem_of(model)])
    raise ValueError(
        f"the kind of task of a {type(model).__name__} is not known; give kind= (allowed: "
        f"{', '.join(_KINDS)}), or loss= of your own"
    )


def _problem_of(model: nn.Module) -> str:
    config = model.config
    few = "regression" if config.num_labels == 1 else "single_label_classification"
    problem = getattr(config, "problem_type", None) or few
    if problem not in _OF_PROBLEMS:
        raise ValueError(
            f"problem_type={problem!r:.80} of the model's config is not known; allowed: "
            f"{', '.join(_OF_PROBLEMS)}"
        )
    return problem


def _holds(entry: object, name: str) -> bool:
    return entry == name or (isinstance(entry, tuple | list) and name in entry)
