"""Stored benchmarks: what `make benchmarks` wrote, and on which machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field


class Machine(BaseModel):
    """What the benchmarks ran on; ``cores`` are those that the run could use."""

    processor: str
    cores: int
    gpu: str | None
    torch: str

    def __str__(self) -> str:
        return f"{self.gpu or f'{self.processor}, {self.cores} cores'}; torch {self.torch}"


class Stats(BaseModel):
    """Wall time of one call in seconds."""

    min: float
    median: float


class Timing(BaseModel):
    """What was done (its group), how ("way") and where ("device"), with further measurements."""

    group: str
    params: dict[str, Any]
    extra: dict[str, Any] = Field(alias="extra_info")
    stats: Stats


class Benchmarks(BaseModel):
    """One run of the benchmarks on one machine."""

    machine: Machine = Field(alias="machine_info")
    timings: list[Timing] = Field(alias="benchmarks")

    def find(self, group: str, **params: Any) -> Timing:
        """The one timing of the group that starts so, with these parameters, or a KeyError."""
        found = [
            timing
            for timing in self.timings
            if timing.group.startswith(group) and params.items() <= timing.params.items()
        ]
        if len(found) != 1:
            raise KeyError(f"{len(found)} benchmarks of {group!r} with {params}")
        return found[0]


def read_benchmarks(path: str | Path) -> Benchmarks:
    """Read a file that pytest-benchmark wrote; a ValueError if it lacks what our conftest adds."""
    try:
        return Benchmarks.model_validate_json(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a run of the benchmarks: {error}") from None
