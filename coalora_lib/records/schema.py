"""A record of a run: its job, its origin, its settings, and its results."""

from __future__ import annotations

import base64
import math
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic.dataclasses import dataclass
from torch import Tensor

#: Words joined by single dots, dashes or underscores: safe in a file's name, in any folder.
Slug = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$", max_length=80)
]
#: Bits of an unquantized parameter, which is counted as float32 whatever its dtype.
UNQUANTIZED = 32.0
#: Bits per parameter, up to float64's.
Bits = Annotated[float, Field(gt=0, le=64)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: What the time of a run is counted to.
Phase = Literal["preparation", "teacher", "fitting", "training", "search", "evaluation"]


def _no_negative(loss: float) -> float:
    """A run that diverged has a loss of nan or inf, which a record is to say."""
    if loss < 0:
        raise ValueError(f"{loss} must not be negative")
    return loss


Loss = Annotated[float, AfterValidator(_no_negative)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Job:
    """One run of an experiment: what decides its record's name, beside data set and profile.

    Attributes:
        rank: of the LoRA factors; None for a method without factors, which stands for all ranks.
        budget: mean bits per parameter of a run for one configuration; None of a run for many.
        space: that configurations are from, such as "nf" or "int".
    """

    method: Slug
    rank: Annotated[int, Field(ge=1, le=2**20)] | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    budget: Bits | None = None
    space: Slug = "nf"

    @property
    def name(self) -> str:
        """The job without its seed, as a slug."""
        rank = "" if self.rank is None else f"-rank{self.rank}"
        budget = "" if self.budget is None else f"-{self.budget:g}bits"
        return f"{self.method}{rank}{budget}"

    def file_name(self, dataset: str, profile: str) -> str:
        """<method>[-rank<rank>][-<budget>bits]-<data set>-<profile>-seed<seed>.json."""
        return f"{self.name}-{dataset}-{profile}-seed{self.seed}.json"


class Strict(BaseModel):
    """What is stored as JSON, with no other fields than these."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class Result(Strict):
    """A run's model under one configuration.

    Attributes:
        budget: mean bits per parameter asked for, None if arbitrary; bits: stored by the
            configuration, :data:`UNQUANTIZED` without one.
        accuracy: 0 to 1, over ``examples``; None of what aims at the unquantized model.
        loss: mean cross-entropy in nats; of embeddings 1 - cosine with the unquantized model's; of
            distributions of the next token KL(unquantized || model) in nats.
        neighbours: of embeddings, the share of each text's ten nearest ones that are so for the
            unquantized model; spearman: Spearman's correlation of cosines with people's scores on
            the dev pairs of STS-B, None where there were none.
        agreement: of distributions of the next token, the share of tokens whose likeliest next one
            is the unquantized model's.
        seconds: wall time of the whole training, search included.
        steps: optimizer steps; passes: forward-backward passes, steps times configurations.
        correct: which examples are right, in their order, as :func:`pack` makes it; None of
            embeddings, and of a language model, whose examples are tokens.
    """

    budget: Bits | None
    bits: Bits
    accuracy: Share | None
    loss: Loss
    examples: Count
    seconds: Seconds
    steps: Count
    passes: Count
    correct: str | None = None
    neighbours: Share | None = None
    spearman: Annotated[float, Field(ge=-1, le=1)] | None = None
    agreement: Share | None = None

    @model_validator(mode="after")
    def _one_bit_per_example(self) -> Result:
        if self.correct is not None:
            try:
                packed = len(base64.b64decode(self.correct, validate=True))
            except ValueError:
                raise ValueError("correct is not base 64 text") from None
            if packed != math.ceil(self.examples / 8):
                raise ValueError(f"correct holds {packed} bytes for {self.examples} examples")
        return self

    @cached_property  # chapters ask for the same ones a hundred times
    def correctness(self) -> np.ndarray:
        """(examples,) bool; a ValueError if the record does not say which are right."""
        if self.correct is None:
            raise ValueError(f"a result at {self.bits:g} bits has no correctness per example")
        packed = np.frombuffer(base64.b64decode(self.correct), dtype=np.uint8)
        return np.unpackbits(packed, count=self.examples).astype(bool)


class SearchedSet(Strict):
    """What one search between two stretches of training saw and did.

    Attributes:
        configurations: the set and, last, what was proposed; each one string: every layer's row
            number of its choice in the record's space.
        losses, bits: of each, scored with the adapters of that moment.
        proposed: how many were proposed; kept: positions of the next set.
    """

    configurations: list[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}( [0-9]{1,9})*$")]]
    losses: list[Loss]
    bits: list[Bits]
    proposed: Count
    kept: list[Count]

    @model_validator(mode="after")
    def _as_many_of_each(self) -> SearchedSet:
        count = len(self.configurations)
        if {len(self.losses), len(self.bits)} != {count}:
            raise ValueError(
                f"{count} configurations, {len(self.losses)} losses and "
                f"{len(self.bits)} bits: the numbers must be equal"
            )
        if self.proposed > count or any(position >= count for position in self.kept):
            raise ValueError(f"proposed and kept must lie within the {count} configurations")
        if len({text.count(" ") for text in self.configurations}) > 1:
            raise ValueError("the configurations have different numbers of layers")
        return self

    @classmethod
    def of(
        cls, rows: Tensor, losses: Tensor, bits: Tensor, proposed: int, kept: Tensor
    ) -> SearchedSet:
        """From (n, layers) rows of choices, and (n,) losses and bits, kept to seven digits."""
        return cls(
            configurations=as_text(rows),
            losses=[float(f"{loss:.7g}") for loss in losses.tolist()],
            bits=[float(f"{each:.7g}") for each in bits.tolist()],
            proposed=proposed,
            kept=kept.tolist(),
        )

    @property
    def points(self) -> Tensor:
        """(n, 2) of [loss, bits], float64."""
        return torch.tensor([self.losses, self.bits], dtype=torch.float64).T

    @property
    def rows(self) -> Tensor:
        """(n, layers) int64: the row of each layer's choice in the record's space."""
        return torch.tensor([[int(row) for row in text.split()] for text in self.configurations])


class Twins(Strict):
    """A configuration of the training set, and one like it that the run never met."""

    seen: Result
    unseen: Result


class Record(Strict):
    """A run: its job, its origin, its settings, its results, and its searches, if any.

    Attributes:
        protocol: the rules of the run; see :mod:`coalora_lib.experiments.methods`.
        created: ISO 8601.
        parameters: of the profile, but for the rank, which is the job's.
        peak_memory: bytes that torch held on the GPU at most; None on a processor.
        stored: numbers beside the pre-trained weights, but for heads; all of a full fine-tuning.
    """

    protocol: Slug
    job: Job
    created: str
    dataset: Slug
    synthetic: bool
    data_checksum: str
    model: str
    model_checksum: str
    profile: Slug
    parameters: dict[str, Any]
    device: str
    versions: dict[str, str]
    git_commit: str | None
    results: list[Result]
    twins: list[Twins] = []
    searches: list[SearchedSet] = []
    code: str | None = None
    phases: dict[Phase, Seconds] = {}
    peak_memory: Count | None = None
    stored: Count | None = None

    @property
    def file_name(self) -> str:
        """What the record is called in its folder."""
        return self.job.file_name(self.dataset, self.profile)


def as_text(rows: Tensor) -> list[str]:
    """(n, layers) row numbers as text, a string each with a space between two numbers."""
    return [" ".join(map(str, row)) for row in rows.tolist()]


def pack(correct: Tensor) -> str:
    """(examples,) bool as text: eight examples a byte, in base 64."""
    return base64.b64encode(np.packbits(correct.numpy()).tobytes()).decode()
