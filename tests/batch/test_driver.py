"""What happens when the batch itself, or a scheduler, is stopped; and workers of other machines."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
import pytest

from coalora_lib.batch import cluster
from coalora_lib.batch.engine import run_batch
from coalora_lib.batch.jobs import MethodRun
from coalora_lib.experiments.runner import job_for
from coalora_lib.records import read_record
from tests.batch.conftest import Told
from tests.batch.toys import Toy

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def wait_for(true, seconds=60):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


def made(folder):
    return {path.name for path in folder.glob("*.txt")}


@contextmanager
def process(*words, cwd=ROOT, **more):
    """A Python process in a group of its own; it and all that it started end with the block."""
    line = [sys.executable, "-m", *map(str, words)]
    started = subprocess.Popen(line, cwd=cwd, env=ENVIRONMENT, start_new_session=True, **more)
    try:
        yield started
    finally:
        try:
            children = psutil.Process(started.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        started.kill()
        for child in children:
            if child.is_running():
                child.kill()
        started.wait()


def family(pid):
    return psutil.Process(pid).children(recursive=True)


def gone(processes):
    return not [each for each in processes if each.is_running() and each.status() != "zombie"]


@pytest.mark.parametrize("how", ["kill -9", "Ctrl-C", "SIGINT", "SIGTERM"])
def test_a_stopped_driver_leaves_no_orphan_and_a_second_one_goes_on(how, tmp_path, run, fault):
    folder = tmp_path / "results"
    with process("tests.batch.drive", folder, 6, 1, stderr=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: len(made(folder)) >= 2 and (folder / ".scratch").exists())
        children = family(driver.pid)
        assert len(children) >= 2
        if how == "Ctrl-C":  # a terminal sends it to all
            os.killpg(driver.pid, signal.SIGINT)
        else:
            signals = {"kill -9": "SIGKILL"}
            driver.send_signal(getattr(signal, signals.get(how, how)))
        wait_for(lambda: gone(children))
        _, said = driver.communicate(timeout=60)
    before = made(folder)
    assert len(before) < 6
    if how in ("Ctrl-C", "SIGINT"):
        assert "interrupted; lost up to a checkpoint: " in said
    jobs = [Toy(f"job{i}", "sleep", "1") for i in range(6)]
    summary = run(jobs, folder)
    assert {f"{name}.txt" for name in summary.there} == before
    assert len(summary.made) == 6 - len(before)
    lost = "the jobs in flight; workers end within seconds"
    fault(f"the batch is stopped by {how}", "what was made; the same command goes on", lost)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_chapters_kernel_ends_with_the_batch(how, tmp_path, fault):
    book, begun = tmp_path / "book", tmp_path / "begun"
    book.mkdir()
    wait = f"import os, time\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(120)"
    cells = [
        nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(wait),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), book / "a.ipynb")
    (tmp_path / "_toc.yml").write_text("root: book/a.ipynb\nchapters: []\n")
    words = ("coalora_lib", "batch", "--set", "chapters=a", "--root", tmp_path, "--results")
    with process(*words, tmp_path / "out", stderr=subprocess.PIPE, text=True) as driver:
        number = wait_for(lambda: begun.exists() and begun.read_text())
        running = [psutil.Process(int(number)), *family(driver.pid)]
        driver.send_signal(getattr(signal, how))
        wait_for(lambda: gone(running))  # the kernel would sleep for longer
        _, said = driver.communicate(timeout=60)
    if how == "SIGINT":
        assert driver.returncode == 130
        assert said.splitlines()[-1] == "coalora: interrupted"
    else:
        fault("kill -9 of a batch of chapters", "no process is left: workers, kernels", "what ran")


@contextmanager
def scheduler(port):
    words = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with process(*words, "--dashboard-address", "127.0.0.1:0", **quiet) as started:
        wait_for(lambda: reachable(port))
        yield started


@contextmanager
def worker(port, folder):
    words = ("distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1")
    more = ("--host", "127.0.0.1", "--local-directory", folder, "--dashboard-address")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with process(*words, *more, "127.0.0.1:0", cwd=folder, **quiet) as started:
        yield started


def reachable(port):
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def one_worker(port, folder):
    """A scheduler with one worker: the scheduler's process, and a client."""
    with (
        scheduler(port) as process,
        worker(port, folder),
        cluster.connected(f"tcp://127.0.0.1:{port}") as client,
    ):
        client.wait_for_workers(1)
        yield process, client


def test_a_scheduler_that_goes_and_comes_back_loses_what_was_in_flight(tmp_path, fault):
    port, told, folder = free_port(), Told(), tmp_path / "results"
    jobs = [Toy(f"job{i}", "sleep", "0.5") for i in range(12)]
    with one_worker(port, tmp_path) as (first, client):
        ended = []

        def batch():
            ended.append(run_batch(jobs, folder, client, told, alike=True))

        thread = threading.Thread(target=batch)
        thread.start()
        wait_for(lambda: folder.exists() and len(made(folder)) >= 2)
        first.kill()
        first.wait()
        with scheduler(port), worker(port, tmp_path):
            thread.join(90)
            assert ended
            assert len(ended[0].made) == 12
    assert told.has_said("the scheduler was gone")
    fault("the scheduler goes and comes back", "all jobs", "those in flight, repeated")


def test_a_scheduler_that_does_not_come_back_ends_the_batch(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(cluster, "PATIENCE", 3)
    port, folder = free_port(), tmp_path / "results"
    jobs = [Toy(f"job{i}", "sleep", "0.5") for i in range(12)]
    with one_worker(port, tmp_path) as (only, client):
        told = Told()
        told.ended = lambda name, how, note="": only.kill() if name == "job1" else None
        with pytest.raises(ConnectionError, match="the scheduler is gone"):
            run_batch(jobs, folder, client, told, alike=True)
    assert {"job0.txt", "job1.txt"} <= made(folder)
    fault("the scheduler is gone for good", "what was made; one clear line", "what was in flight")


def test_nobody_at_an_address_is_said(monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        pytest.raises(ConnectionError, match=f"no scheduler answers at {address}"),
        cluster.connected(address),
    ):
        pass


def without_times(path):
    record = read_record(path).model_dump(exclude={"created", "phases", "device"})
    for result in [
        *record["results"],
        *(each for pair in record["twins"] for each in pair.values()),
    ]:
        del result["seconds"]
    return record


@pytest.mark.slow
def test_two_workers_without_a_common_disk_give_the_same_records(
    small_run, tmp_path, monkeypatch, fault
):
    """Their working folders are apart, and the results' folder is hidden from them."""
    jobs = [MethodRun(job_for("shared-lora", 4, seed), small_run) for seed in (0, 1)]
    port, (one, two) = free_port(), (tmp_path / "one", tmp_path / "two")
    one.mkdir()
    two.mkdir()
    with (
        scheduler(port),
        worker(port, one),
        worker(port, two),
        cluster.connected(f"tcp://127.0.0.1:{port}") as client,
    ):
        client.wait_for_workers(2)
        client.run(hide, str(tmp_path / "far"))
        far = run_batch(jobs, tmp_path / "far", client, Told())
    assert len(far.made) == 2, far.failed
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # as many threads as those workers
    with cluster.local(1) as client:
        run_batch(jobs, tmp_path / "near", client, Told(), alike=True)
    for job in jobs:
        found = [without_times(tmp_path / place / job.file) for place in ("far", "near")]
        assert found[0] == found[1]
    fault("two workers with no common disk", "the same records as a local run's, times left out")


def hide(folder):
    """On a worker: as if it had no such folder."""
    from coalora_lib.batch.worker import Home

    real = Home.is_here.fget
    Home.is_here = property(lambda home: str(home.folder) != folder and real(home))


def test_workers_that_differ_are_named_and_get_no_work(client, tmp_path, monkeypatch, fault):
    runs = tmp_path / "runs"
    monkeypatch.setattr(
        "coalora_lib.batch.running.facts", lambda _: {"code": "0123", "torch": "1.0"}
    )
    with pytest.raises(ValueError, match=r"tcp://127.*: code is \w+ there, 0123 here; torch is 2"):
        run_batch([Toy("job", "count", str(runs))], tmp_path / "results", client, Told())
    assert not runs.exists()
    fault("workers with other code or packages", "named and refused before they get work")
