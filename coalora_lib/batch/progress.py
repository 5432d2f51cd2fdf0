"""The display of a batch: a live table on a terminal, lines elsewhere, and a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.table import Table

#: How a job may have ended, in the order of the head line.
ENDS = ("made", "there", "failed", "unwritten")


class Progress(Protocol):
    """What is told while a batch runs; :mod:`coalora_lib.batch.progress` shows it."""

    def began(self, total: int) -> None:
        """So many jobs are in the batch."""

    def started(self, name: str, worker: str) -> None:
        """A job has begun on a worker."""

    def ended(self, name: str, how: str, note: str = "") -> None:
        """A job was "made", "there", "failed", is "unwritten", or was "lost" and begins again."""

    def said(self, text: str) -> None:
        """Something else, in one line."""


@dataclass
class Summary:
    """How a batch ended, job by job.

    Attributes:
        made, there: names of the results that were made, and of those that existed or another batch
            made.
        failed: the error of each job that failed; earlier: of those that had failed before, and
            were not tried again.
    """

    folder: Path
    made: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, str] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """Whether every job's result is there."""
        return not (self.failed or self.earlier)


@dataclass
class Lines:
    """A line for each job that ends, on stderr."""

    total: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDS, 0))

    def began(self, total: int) -> None:
        """Say how many there are."""
        self.total = total
        self.said(f"{total} jobs")

    def started(self, name: str, worker: str) -> None:
        """Nothing is said of it."""

    def ended(self, name: str, how: str, note: str = "") -> None:
        """Say it."""
        if how in self.counts:
            self.counts[how] += 1
        if how != "lost" or note:
            about = f": {note}" if note else ""
            self.said(f"[{sum(self.counts.values())}/{self.total}] {name} {how}{about}")

    def said(self, text: str) -> None:
        """Say it."""
        print(text, file=sys.stderr, flush=True)


class Live(Lines):
    """A table of what runs, on a terminal; what ended is said above it."""

    def __init__(self, dashboard: str = "") -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        super().__init__()
        self._running: dict[str, tuple[str, float]] = {}
        self._seconds: list[float] = []
        self._dashboard = dashboard
        self._live = RichLive(
            get_renderable=self._table, console=Console(stderr=True), refresh_per_second=2
        )

    def started(self, name: str, worker: str) -> None:
        """Show it until it ends."""
        self._running[name] = (worker, time.monotonic())

    def ended(self, name: str, how: str, note: str = "") -> None:
        """Say it, and learn how long a job takes."""
        begun = self._running.pop(name, None)
        if begun is not None and how == "made":
            self._seconds.append(time.monotonic() - begun[1])
        super().ended(name, how, note)

    def said(self, text: str) -> None:
        """Say it above the table."""
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Live:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _table(self) -> Table:
        from rich.table import Table

        counts = ", ".join(f"{count} {how}" for how, count in self.counts.items() if count)
        title = f"{len(self._running)} of {self.total} jobs running; {counts or 'none ended'}"
        left = self._left()
        table = Table(title=title + (f"; about {span(left)} left" if left else ""))
        for heading in ("job", "worker", "since"):
            table.add_column(heading)
        now = time.monotonic()
        for name, (worker, since) in list(self._running.items()):
            table.add_row(name, worker, span(now - since))
        table.caption = self._dashboard or None
        return table

    def _left(self) -> float:
        """Seconds, if the jobs that are left take as long as those that were made."""
        if not self._seconds or not self._running:
            return 0.0
        each = sum(self._seconds) / len(self._seconds)
        open_jobs = self.total - sum(self.counts.values())
        begun = sum(time.monotonic() - since for _, since in list(self._running.values()))
        return max(0.0, each * open_jobs - begun) / len(self._running)


@contextmanager
def shown(dashboard: str = "") -> Iterator[Lines]:
    """A live table on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    with Live(dashboard) as live:
        yield live


def span(seconds: float) -> str:
    """A time as "12 s", "3 min" or "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
