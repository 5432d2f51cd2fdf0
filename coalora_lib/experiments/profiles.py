"""What a run is asked for: a size (quick, standard, the paper's), a seed, a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coalora_lib.allocation import spread
from coalora_lib.packaged import MINILM
from coalora_lib.search import SearchPlan
from coalora_lib.tasks import TASKS

#: The parameters that the stored outputs of the chapters were made with.
PUBLISHED = {"profile": "quick", "seed": 0, "dataset": "embedded"}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything about a run that is not its seed or its data.

    Attributes:
        model: its name, for the loaders of :mod:`coalora_lib.tasks`.
        dtype: of the pre-trained weights: "float32"; "float64", which makes the printed digits the
            same on every CPU, and is float32 on a GPU; or "bfloat16", in which large models are
            stored. A GPU computes under bfloat16 autocast.
        train_examples, validation_examples: taken from the start of a split; None is all.
        scoring_examples: held out of the training split for the search and for tuning.
        max_length: tokens; of C4, in a block.
        epochs: over the training examples, each with ``configurations_per_step`` passes.
        error_pieces: pieces of each layer the error table looks at; None is all weights.
        training_budgets: bits of the allocated configurations in the first training set.
        random_configurations: arbitrary ones beside them.
        budgets: bits at which the methods are compared.
        arbitrary_configurations: those that a trained model is evaluated on, in no training set.
        kind: of task, see :mod:`coalora_lib.kinds`: "single-label", "causal-lm"; or "embedding" and
            "next-token", which aim at the unquantized model's own outputs and need no labels.
    """

    name: str
    model: str
    dtype: str = "float32"
    train_examples: int | None = None
    validation_examples: int | None = None
    scoring_examples: int
    max_length: int = 128
    rank: int
    alpha: float
    epochs: float
    batch_size: int
    configurations_per_step: int = 1
    learning_rate: float
    error_pieces: int | None = None
    training_budgets: tuple[float, ...]
    random_configurations: int
    search: SearchPlan
    budgets: tuple[float, ...] = (2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 5.0, 6.0)
    arbitrary_configurations: int = 40
    kind: str = "single-label"


@dataclass(frozen=True)
class Run:
    """A run's checked parameters; the data are "embedded" or of :data:`coalora_lib.tasks.TASKS`."""

    profile: Profile
    seed: int
    dataset: str = "embedded"

    @property
    def published(self) -> bool:
        """Whether all is as for the stored outputs, which the text speaks of."""
        given = {"profile": self.profile.name, "seed": self.seed, "dataset": self.dataset}
        return given == PUBLISHED and self.profile == PROFILES[self.profile.name]


_QUICK = Profile(
    name="quick",
    model=MINILM,
    dtype="float64",
    train_examples=8192,
    validation_examples=128,
    scoring_examples=64,
    max_length=64,
    rank=8,
    alpha=16,
    epochs=1,
    batch_size=16,
    learning_rate=1e-3,
    error_pieces=1,
    training_budgets=spread(2.25, 5.0, 6),
    random_configurations=3,
    search=SearchPlan(rounds=2, restarts=3, max_steps=30, proposals=6),
    budgets=(2.5, 4.0),
    arbitrary_configurations=6,
)
_STANDARD = Profile(
    name="standard",
    model=MINILM,
    scoring_examples=512,
    rank=16,
    alpha=16,
    epochs=3,
    batch_size=128,
    learning_rate=1e-3,
    training_budgets=spread(2.25, 5.0, 25),
    random_configurations=25,
    search=SearchPlan(rounds=3, restarts=5, max_steps=30, proposals=20),
)
#: RoBERTa-large on GLUE, with the paper's hyperparameters.
_PAPER = Profile(
    name="paper",
    model="FacebookAI/roberta-large",
    scoring_examples=1024,
    rank=64,
    alpha=64,
    epochs=10,
    batch_size=64,
    learning_rate=1e-4,
    training_budgets=spread(2.25, 7.25, 50),
    random_configurations=0,
    search=SearchPlan(rounds=10, restarts=5, max_steps=120, proposals=20),
)
#: The paper's language models, by their names in profiles.
_DECODERS = {
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
}
#: A language model on C4 with the paper's hyperparameters; the numbers of texts are ours.
_DECODER = replace(
    _PAPER,
    dtype="bfloat16",
    kind="causal-lm",
    train_examples=8192,
    validation_examples=1024,
    scoring_examples=64,
    max_length=1024,
    epochs=5,
    batch_size=4,
    search=replace(_PAPER.search, rounds=5),
)
#: To give a quantized model its embeddings back. Most methods of this experiment train on a set
#: that is decided beforehand; two extend it by searches, three times.
_RECOVERY = replace(
    _STANDARD,
    name="recovery-standard",
    train_examples=48_000,
    rank=8,
    epochs=4,
    budgets=(2.25, 2.5, 2.9, 3.7, 4.2),
    arbitrary_configurations=24,
    kind="embedding",
)
_QUICK_RECOVERY = replace(
    _QUICK,
    name="recovery-quick",
    train_examples=128,
    epochs=4,
    training_budgets=spread(2.25, 5.0, 4),
    random_configurations=2,
    budgets=(2.5, 2.9, 3.7),
    arbitrary_configurations=4,
    kind="embedding",
)
#: To give a quantized language model its distributions of the next token back. The paper's, and so
#: as above, are the models, their dtype, the texts, their length, the batch and the learning rate.
#: Rank, alpha, sets, search and budgets are recovery-standard's, so that tables have the same
#: columns. Ours are two epochs, and 256 texts to validate on: a run is evaluated 29 times, with two
#: models each time. Texts of C4 have 427 tokens on average (156 billion in 365 million, arXiv
#: 2104.08758): these are some 1,700 steps, where recovery-standard has 1,500, and 110,000 tokens.
_DECODER_RECOVERY = replace(
    _DECODER,
    kind="next-token",
    rank=_RECOVERY.rank,
    alpha=_RECOVERY.alpha,
    training_budgets=_RECOVERY.training_budgets,
    random_configurations=_RECOVERY.random_configurations,
    search=_RECOVERY.search,
    budgets=_RECOVERY.budgets,
    arbitrary_configurations=_RECOVERY.arbitrary_configurations,
    epochs=2,
    validation_examples=256,
)
_ALL = (
    _QUICK,
    _STANDARD,
    _QUICK_RECOVERY,
    _RECOVERY,
    _PAPER,
    *(
        replace(profile, name=f"{task}-{name}", model=model)
        for task, profile in (("paper", _DECODER), ("recovery", _DECODER_RECOVERY))
        for name, model in _DECODERS.items()
    ),
)
#: The sizes of a run, by name.
PROFILES = {profile.name: profile for profile in _ALL}
#: What a chapter may be run with and on: classifiers, and what has classes.
CHAPTER_PROFILES = [name for name, each in PROFILES.items() if each.kind == "single-label"]
CHAPTER_DATASETS = ["embedded", *(name for name, task in TASKS.items() if task.labels)]
