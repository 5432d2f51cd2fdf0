"""The folder of a run: its settings, the trained model, and the outcome.

run.json        settings; when the run is finished, metrics, losses, searches, and the checksums
                of the tokenizer's files too
tokenizer/      of the model
checkpoints/    while it trains
model/          the trained model, see :mod:`coalora_lib.adapter.saving`
"""

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from coalora_lib.adapter import CoaLora
from coalora_lib.files import atomic_file, check_files, seal, sha256_of, unseal
from coalora_lib.kinds import TaskKind, get_kind
from coalora_lib.packaged import MINILM, full_name
from coalora_lib.validation import describe, flat

ABOUT, TOKENIZER, CHECKPOINTS, MODEL = "run.json", "tokenizer", "checkpoints", "model"


class Settings(BaseModel):
    """What a run is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = MINILM  #: a name on the hub, a folder, or the packaged model
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  #: of the pre-trained weights
    data: str  #: path of the table with the texts
    text: str = "text"  #: its column with the texts
    label: str | None = None  #: its column with the labels
    second: str | None = None  #: its column with the second texts, or the texts to be written
    kind: str | None = None  #: of task; by default what the labels say
    validation: str | None = None  #: path of another table; by default a tenth of the rows
    budgets: tuple[float, float] = (2.25, 5.0)  #: from so many to so many mean bits
    configurations: int = Field(50, ge=1)  #: in the training set, half of them drawn at random
    space: str = "nf"
    rank: int = Field(16, ge=1)
    alpha: float = Field(16, gt=0)
    epochs: float = Field(3, gt=0)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    max_length: int = Field(128, ge=2)  #: in tokens, at most what the model takes; texts are cut
    searches: int = Field(0, ge=0)  #: between stretches of training
    seed: int = Field(0, ge=0, lt=2**32)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Settings of these values.

        Raises:
            ValueError: a name is not known, or a value is not allowed; both are named.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise ValueError(describe(error)) from None

    def absolute(self) -> Self:
        """The same with absolute paths, which mean the same wherever a command is given."""
        paths = {
            name: os.path.abspath(os.path.expanduser(path))
            for name in ("data", "validation")
            if (path := getattr(self, name)) is not None
        }
        return self.model_copy(update={"model": full_name(self.model), **paths})


class Outcome(BaseModel):
    """What a run came to."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    classes: list[str] | None
    kind: str
    metrics: list[dict[str, float]]  #: bits and metrics on the validation rows
    examples: dict[str, int]  #: how many to train on, to validate on
    losses: list[float]  #: of each step
    searches: list[dict[str, Any]]
    seconds: float

    @model_validator(mode="after")
    def _can_be_reported(self) -> Self:
        if not all(0 < row.get("bits", 0) <= 64 for row in self.metrics):
            raise ValueError("each row of metrics needs bits, above 0 and at most 64")
        if self.examples.keys() != {"training", "validation"}:
            raise ValueError("examples must say how many for training and for validation")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes has a class twice")
        return self


class Described(BaseModel):
    """run.json."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["coalora-run-1"] = "coalora-run-1"
    settings: Settings
    outcome: Outcome | None = None
    tokenizer_sha256: dict[str, str] = {}  #: by file; runs finished before lack it


class RunFolder:
    """A run's folder.

    Attributes:
        path: the folder; described: its run.json.
    """

    def __init__(self, path: Path, described: Described) -> None:
        self.path, self.described = path, described

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read a folder's run.json.

        Raises:
            FileNotFoundError: there is no such folder, or no run.json in it.
            ValueError: run.json is not one of ours, or was altered.
        """
        path = Path(path).expanduser()
        about = path / ABOUT
        if not about.is_file():
            raise FileNotFoundError(f"{path} is not a run: it has no {ABOUT}")
        try:
            described = Described.model_validate(unseal(about.read_text()))
        except ValidationError as error:
            raise ValueError(f"{about} cannot be read: {describe(error)}") from None
        except ValueError as error:
            raise ValueError(f"{about} cannot be read: {flat(error):.300}") from None
        return cls(path, described)

    @classmethod
    def begin(cls, path: str | Path, settings: Settings) -> Self:
        """The folder of a run that is asked for, taken up where it stands; nothing is written.

        Its settings have absolute paths.

        Raises:
            FileExistsError: the folder holds something else.
            ValueError: it holds a run of other settings; the first that differs is named.
        """
        path, settings = Path(path).expanduser(), settings.absolute()
        if (path / ABOUT).is_file():
            found = cls.open(path)
            there, asked = found.described.settings.model_dump(), settings.model_dump()
            for name, value in asked.items():
                if there[name] != value:
                    raise ValueError(
                        f"{path} is a run with {name}={there[name]!r}, not "
                        f"{value!r}; give another folder, or the same settings to continue"
                    )
            return found
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(f"{path} exists and has no {ABOUT}, so nothing was changed")
        return cls(path, Described(settings=settings))

    def write(self) -> None:
        """Write run.json, the folder too if it is missing."""
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path / ABOUT) as partial:
            partial.write_text(seal(self.described.model_dump(mode="json")))

    @property
    def settings(self) -> Settings:
        """What was asked for."""
        return self.described.settings

    @property
    def outcome(self) -> Outcome:
        """What it came to.

        Raises:
            ValueError: it is not finished.
        """
        if self.described.outcome is None:
            raise ValueError(f"{self.path} is not finished; the command that began it continues it")
        return self.described.outcome

    @property
    def kind(self) -> TaskKind:
        """The kind of task."""
        return get_kind(self.outcome.kind)

    def load_model(self) -> CoaLora:
        """The trained model."""
        _ = self.outcome  # it is finished
        return CoaLora.from_pretrained(self.path / MODEL)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer.

        Raises:
            FileNotFoundError: its folder or a file is missing.
            ValueError: a file was changed since the run was finished, or cannot be read.
        """
        folder = self.path / TOKENIZER
        if not folder.is_dir():  # transformers would take it for a name on the hub
            raise FileNotFoundError(f"{folder}: no such folder")
        check_files(folder, self.described.tokenizer_sha256)
        try:
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # transformers and tokenizers have errors of any kind
            raise ValueError(f"{folder} is no tokenizer: {flat(error):.300}") from error


def digests(folder: Path) -> dict[str, str]:
    """sha256 of each file in a folder, by its path there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
