"""Batches: what the engine adds to jobs, and what two workers save."""

import time

import psutil
import pytest

from coalora_lib.batch import cluster
from coalora_lib.batch.engine import run_batch
from tests.batch.conftest import Told
from tests.batch.toys import Toy


@pytest.fixture(scope="module")
def workers():
    """Clients of one worker and of two."""
    with cluster.local(1) as one, cluster.local(2) as two:
        for client in (one, two):
            client.run(time.monotonic)
        yield {1: one, 2: two}


@pytest.mark.parametrize("count", [1, 2])
def test_24_quick_jobs(count, workers, tmp_path, benchmark):
    """Each computes for a fixed number of steps, in one thread."""
    jobs = [Toy(f"job{i}", "compute", "6000000") for i in range(24)]
    summary = benchmark.pedantic(
        run_batch,
        (jobs, tmp_path, workers[count], Told()),
        {"alike": True},
        rounds=1,
    )
    assert len(summary.made) == 24


def test_1000_trivial_jobs(workers, tmp_path, benchmark):
    jobs = [Toy(f"job{i}") for i in range(1000)]
    run_batch(jobs[:100], tmp_path / "before", workers[2], Told(), alike=True)
    before = psutil.Process().memory_info().rss
    summary = benchmark.pedantic(
        run_batch, (jobs, tmp_path / "all", workers[2], Told()), {"alike": True}, rounds=1
    )
    assert len(summary.made) == 1000
    benchmark.extra_info["more_megabytes"] = (psutil.Process().memory_info().rss - before) / 2**20
