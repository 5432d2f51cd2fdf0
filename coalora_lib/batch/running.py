"""A batch while it runs: waiting jobs, jobs on workers, and the outcome of each.

Only the driver decides and writes. It gives out as many jobs as there are workers, so that memory
does not grow with a batch, and what dies with a worker is one job. Nothing is decided by the time
of day.
"""

from __future__ import annotations

import math
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Client, Future, KilledWorker

from coalora_lib.batch.claims import Claim
from coalora_lib.batch.folder import NotWritten, ResultFolder
from coalora_lib.batch.jobs import BatchJob
from coalora_lib.batch.progress import Progress, Summary
from coalora_lib.batch.worker import (
    TOPIC,
    Home,
    Outcome,
    describe_worker,
    differences,
    execute,
    facts,
)

#: How often a job's process may die before the job has failed.
DEATHS = 3
#: Seconds between looks at what no event tells: limits, other batches' claims, workers.
TICK = 0.2
#: Of many faults, so many are named.
NAMED = 10


@dataclass
class _Running:
    """A job that this batch has claimed.

    Attributes:
        worker: empty until it is known to have begun; since: by the monotonic clock.
        deaths: of its process.
    """

    job: BatchJob
    claim: Claim
    future: Future | None = None
    worker: str = ""
    since: float = math.inf
    deaths: int = 0


@dataclass
class Batch:
    """A batch while it runs; see :func:`~coalora_lib.batch.engine.run_batch`.

    Attributes:
        elsewhere: claimed by another batch, when last looked at.
        again: to be handed out once more.
        running: by key, what workers have.
        unwritten: results, kept in memory until they can be written.
        blocked: why nothing can be written; then nothing new is begun.
        alone: there is no worker.
    """

    folder: ResultFolder
    client: Client
    progress: Progress
    retry: bool
    remake: bool
    limit: float | None
    waiting: deque[BatchJob] = field(default_factory=deque)
    elsewhere: deque[BatchJob] = field(default_factory=deque)
    again: deque[_Running] = field(default_factory=deque)
    running: dict[str, _Running] = field(default_factory=dict)
    unwritten: list[tuple[_Running, bytes]] = field(default_factory=list)
    blocked: str = ""
    alone: bool = False
    expected: dict[str, str] | None = None
    datasets: tuple[str, ...] = ()
    #: What each worker began last, also after it died.
    last: dict[str, str] = field(default_factory=dict)
    events: SimpleQueue[tuple[str, Any]] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        self.summary = Summary(self.folder.path)

    # Before anything starts.

    def look_at(self, jobs: Sequence[BatchJob]) -> None:
        """Skip finished jobs, refuse files that are not a job's result, name earlier failures."""
        wrong = []
        for job in jobs:
            fault = self.folder.fault(job)
            if fault is None:
                self.summary.there.append(job.name)
            elif fault and not self.remake:
                wrong.append(f"{job.file}: {fault}")
            elif not self.retry and (error := self.folder.failed_earlier(job)):
                self.summary.earlier[job.name] = error
            else:
                self.waiting.append(job)
        if wrong:
            more = f" (and {len(wrong) - NAMED} more)" if len(wrong) > NAMED else ""
            raise ValueError(
                f"{self.folder.path} has files that are not results of this batch: "
                f"{'; '.join(wrong[:NAMED])}{more}; --remake replaces it, or give another folder"
            )

    def compare_workers(self, datasets: tuple[str, ...]) -> None:
        """Refuse workers that are not like this process; later ones are looked at with a job."""
        self.datasets = datasets
        self.expected = facts(datasets) | {"threads a worker": "1"}
        found = self.client.run(describe_worker, datasets)
        wrong = {each: differences(self.expected, theirs) for each, theirs in found.items()}
        named = [f"{each}: {what}" for each, what in wrong.items() if what]
        if named:
            raise ValueError(f"workers differ from this machine: {' | '.join(named)}")

    # While it runs.

    def run(self) -> Summary:
        """Until every job has ended."""
        summary = self.summary
        self.progress.began(len(self.waiting) + len(summary.there) + len(summary.earlier))
        for name in summary.there:
            self.progress.ended(name, "there")
        for name, error in summary.earlier.items():
            self.progress.ended(name, "failed", f"in an earlier batch (--retry): {error}")
        self.client.subscribe_topic(TOPIC, self._tell_of_begin)
        try:
            while self.waiting or self.elsewhere or self.again or self.running:
                self._hand_out()
                if self.blocked and not self.running:
                    break
                self._take_events()
                self._end_late_ones()
        except KeyboardInterrupt:
            lost = ", ".join(running.job.name for running in self.running.values()) or "nothing"
            self.progress.said(
                f"interrupted; lost up to a checkpoint: {lost}; the same command goes on"
            )
            raise
        finally:
            rescued = self._stop()
        if self.waiting or rescued:  # it was left since nothing can be written
            raise NotWritten(f"{self.blocked}{rescued}")
        return summary

    def _tell_of_begin(self, event: tuple[float, dict[str, str]]) -> None:
        self.events.put(("began", event[1]))

    def _workers(self) -> int:
        """How many there are now; none while the scheduler is away."""
        try:
            return len(self.client.nthreads()) if self.client.status == "running" else 0
        except OSError:
            return 0

    def _hand_out(self) -> None:
        """A job to each worker that has none."""
        if self.blocked and not self._write_again():
            return
        free = self._workers() - len(self.running)
        if self.again:  # a scheduler that came back does not know of it
            self.client.subscribe_topic(TOPIC, self._tell_of_begin)
        while free > 0 and self.again:
            self._submit(self.again.popleft())
            free -= 1
        if not self.waiting:  # what others had claimed may be done now, or given up
            self.waiting, self.elsewhere = self.elsewhere, deque()
        while free > 0 and self.waiting and not self.blocked:
            free -= self._begin(self.waiting.popleft())

    def _begin(self, job: BatchJob) -> bool:
        """Claim a job, look for its result again, and hand it out; whether it was."""
        try:
            claim = self.folder.claim(job)
        except OSError as error:
            self._block(error)
            self.waiting.appendleft(job)
            return False
        if claim is None:
            self.elsewhere.append(job)
            return False
        running = _Running(job, claim)
        fault = self.folder.fault(job)
        if fault is None:
            claim.release()
            self.summary.there.append(job.name)
            self.progress.ended(job.name, "there", "another batch made it")
        elif fault and not self.remake:
            self._fail(running, f"{job.file}: {fault}")
        elif not self.retry and (told := self.folder.failed_earlier(job)):
            self._fail(running, told)
        else:
            if fault:
                self.folder.forget(job)
            self._submit(running)
            return True
        return False

    def _submit(self, running: _Running) -> None:
        key = f"{running.job.name}-{secrets.token_hex(4)}"
        running.worker, running.since = "", math.inf
        home = Home(self.folder.path, self.folder.token)
        given = (key, running.job, home, self.expected, self.datasets, self.limit)
        running.future = self.client.submit(execute, *given, key=key, pure=False)
        self.running[key] = running
        running.future.add_done_callback(lambda _: self.events.put(("ended", key)))

    def _take_events(self) -> None:
        """Wait for one, for a moment at most, and take all that are there."""
        wait = TICK
        while True:
            try:
                what, about = self.events.get(timeout=wait)
            except Empty:
                break
            wait = 0
            if what == "began":
                self._has_begun(about)
            elif about in self.running:
                self._has_ended(about, self.running.pop(about))
        if self.client.status == "closed":
            raise ConnectionError(
                "the scheduler is gone; running jobs are lost, finished ones are "
                "stored; the same command continues"
            )

    def _has_begun(self, message: dict[str, str]) -> None:
        running = self.running.get(message["key"])
        if running is not None:
            running.worker, running.since = message["worker"], time.monotonic()
            self.last[running.worker] = message["key"]
            self.progress.started(running.job.name, running.worker)

    def _has_ended(self, key: str, running: _Running) -> None:
        future = running.future
        assert future is not None
        if future.status == "finished":
            self._take(running, future.result())
            return
        error = None if future.cancelled() else future.exception()
        if error is None:  # the scheduler went away with it, and may come back
            self._once_more(running, "the scheduler was gone")
        elif not isinstance(error, KilledWorker):
            self._fail(running, f"{type(error).__name__}: {error}")
        elif self.last.get(error.last_worker.address, key) != key:  # it had not begun there
            self._once_more(running)
        else:
            running.deaths += error.allowed_failures + 1
            if running.deaths < DEATHS:
                self._once_more(running, f"its process died on {error.last_worker.address}")
            else:
                self._fail(running, f"its process died {running.deaths} times; memory?")

    def _take(self, running: _Running, outcome: Outcome) -> None:
        """What a worker gave back."""
        if outcome.refused:
            self.progress.said(f"worker {running.worker} is not used: {outcome.refused}")
            self.client.retire_workers([running.worker], close_workers=True)
            self._once_more(running)
        elif outcome.content is None:
            self._fail(running, outcome.error, outcome.log, outcome.kept)
        elif not self._write(running, outcome.content):
            self.unwritten.append((running, outcome.content))
            self.progress.ended(running.job.name, "unwritten", self.blocked)

    def _once_more(self, running: _Running, why: str = "") -> None:
        self.progress.ended(running.job.name, "lost", why)
        self.again.append(running)

    def _end_late_ones(self) -> None:
        """Give up jobs that took too long; their workers end a moment later."""
        for key, running in list(self.running.items()):
            if self.limit is None or time.monotonic() - running.since < self.limit:
                continue
            del self.running[key]
            assert running.future is not None
            running.future.cancel()
            self._fail(running, f"it took longer than {self.limit:g} s")

    # What becomes of a job.

    def _fail(
        self, running: _Running, error: str, log: str | None = None, kept: bytes | None = None
    ) -> None:
        self.folder.note_failure(running.job, log or error, kept)
        running.claim.release()
        self.summary.failed[running.job.name] = error
        self.progress.ended(running.job.name, "failed", error)

    def _write(self, running: _Running, content: bytes) -> bool:
        """Write a result; whether that could be done."""
        try:
            self.folder.write(running.job, content)
        except OSError as error:
            self._block(error)
            return False
        running.claim.release()
        self.summary.made.append(running.job.name)
        self.progress.ended(running.job.name, "made")
        return True

    def _block(self, error: OSError) -> None:
        if not self.blocked:
            self.blocked = f"no results can be written into {self.folder.path}: {error.strerror}"
            self.progress.said(f"{self.blocked}; nothing new is begun")

    def _write_again(self) -> bool:
        """Try to write what could not be; whether all can be written now."""
        self.unwritten = [each for each in self.unwritten if not self._write(*each)]
        try:
            self.folder.probe()
        except OSError:
            return False
        if not self.unwritten:
            self.blocked = ""
        return not self.unwritten

    def _stop(self) -> str:
        """Let go of everything; where results are that could not be written where they belong."""
        if self.client.status == "running":
            self.client.cancel([each.future for each in self.running.values()], force=True)
        rescued = ""
        if self.unwritten:
            rescue = Path(tempfile.mkdtemp(prefix="coalora-results-"))
            for running, content in self.unwritten:
                (rescue / running.job.file).write_bytes(content)
            rescued = f"; {len(self.unwritten)} that were made are in {rescue}"
            self.progress.said(f"{self.blocked}{rescued}")
        held = [*self.running.values(), *self.again, *(each for each, _ in self.unwritten)]
        for running in held:
            running.claim.release()
        return rescued
