"""Task kinds: how texts become examples, and how a model's answers are measured."""

from coalora_lib.kinds.classification import Regression, SeveralLabels, SingleLabel
from coalora_lib.kinds.embedding import Embedding
from coalora_lib.kinds.kind import IGNORED, Examples, Scored, TaskKind, Values
from coalora_lib.kinds.language import CausalLanguageModel, MaskedLanguageModel, SequenceToSequence
from coalora_lib.kinds.next_token import NextToken
from coalora_lib.kinds.own import Loss, OwnLoss
from coalora_lib.kinds.registry import get_kind, kind_of, kinds, objective_of, register_kind
from coalora_lib.kinds.tokens import Spans, Tokens

__all__ = [
    "IGNORED",
    "CausalLanguageModel",
    "Embedding",
    "Examples",
    "Loss",
    "MaskedLanguageModel",
    "NextToken",
    "OwnLoss",
    "Regression",
    "Scored",
    "SequenceToSequence",
    "SeveralLabels",
    "SingleLabel",
    "Spans",
    "TaskKind",
    "Tokens",
    "Values",
    "get_kind",
    "kind_of",
    "kinds",
    "objective_of",
    "register_kind",
]
