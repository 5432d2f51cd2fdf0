"""What the engine does with jobs that go wrong, and with folders that do."""

import ast
import errno
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from coalora_lib import batch
from coalora_lib.batch import cluster
from coalora_lib.batch.claims import Claim
from coalora_lib.batch.engine import run_batch
from coalora_lib.batch.folder import NotWritten, ResultFolder
from coalora_lib.batch.worker import Home
from tests.batch.conftest import Told
from tests.batch.toys import Toy


def results(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def leftovers(folder):
    """What is in the folder of a batch beside its results, token and logs."""
    scratch = [p.name for p in (folder / ".scratch").iterdir() if p.name != "token"]
    return scratch + [p.name for p in (folder / ".claims").iterdir()]


def test_each_job_is_made_once_and_skipped_when_it_is_there(run, tmp_path):
    jobs = [Toy(f"job{i}") for i in range(5)] * 2
    first = run(jobs, tmp_path / "a")
    assert sorted(first.made) == [f"job{i}" for i in range(5)]
    assert first.succeeded
    assert results(tmp_path / "a") == [f"job{i}.txt" for i in range(5)]
    assert not leftovers(tmp_path / "a")
    second = run([*jobs, Toy("new")], tmp_path / "a")
    assert (sorted(second.there), second.made) == (sorted(first.made), ["new"])


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([Toy("../out")], r"'\.\./out' is not a safe name"),
        ([Toy("a/b")], "is not a safe name"),
        ([Toy("a\n")], "is not a safe name"),
        ([Toy(".hidden")], "is not a safe name"),
        ([Toy("x" * 300)], "is not a safe name"),
        ([Toy("a"), Toy("a", "fail")], "two jobs have the name a"),
    ],
    ids=["parent", "folder", "line", "hidden", "long", "twice"],
)
def test_a_name_never_leaves_the_folder(jobs, message, run, tmp_path, fault):
    with pytest.raises(ValueError, match=message):
        run(jobs, tmp_path / "deep" / "results")
    assert not list(tmp_path.iterdir())
    if jobs[0].name == "../out":
        fault("a job named ../out", "refused before anything starts")


def test_several_failures_are_each_named_and_stop_no_other(run, tmp_path, fault):
    jobs = [Toy("bad1", "fail", kept="left.txt"), Toy("good1"), Toy("bad2", "fail"), Toy("good2")]
    summary = run(jobs, tmp_path)
    assert summary.failed == {"bad1": "KeyError: 'two\\nlines'", "bad2": "KeyError: 'two\\nlines'"}
    assert not summary.succeeded
    assert sorted(summary.made) == ["good1", "good2"]
    log = (tmp_path / "logs" / "bad1.log").read_text()
    assert log.splitlines()[0] == summary.failed["bad1"]
    assert "raise KeyError" in log
    assert log.endswith("said before\n")
    assert (tmp_path / "failed" / "bad1.txt").read_text() == "half"
    # Another batch does not try them again, unless it is told to.
    again = run(jobs, tmp_path)
    assert (again.earlier, again.failed, again.succeeded) == (summary.failed, {}, False)
    mended = [Toy("bad1", kept="left.txt"), Toy("bad2")]
    assert sorted(run(mended, tmp_path, retry=True).made) == ["bad1", "bad2"]
    assert not list((tmp_path / "logs").iterdir())
    assert not list((tmp_path / "failed").iterdir())
    fault("two of four jobs raise", "the others; each named, its log kept", "what failed")


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "b''"), (b"jo", "b'jo'"), (b"other", "b'other'")],
    ids=["empty", "truncated", "foreign"],
)
def test_what_is_no_result_is_refused_and_replaced_on_demand(
    content, found, run, tmp_path, fault, request
):
    (tmp_path / "job.txt").write_bytes(content)
    jobs = [Toy("job"), Toy("second")]
    with pytest.raises(ValueError, match=f"job.txt: content is {found}.*--remake replaces it"):
        run(jobs, tmp_path)
    assert results(tmp_path) == ["job.txt"]
    assert (tmp_path / "job.txt").read_bytes() == content
    assert sorted(run(jobs, tmp_path, remake=True).made) == ["job", "second"]
    assert (tmp_path / "job.txt").read_text() == "job"
    kind = request.node.callspec.id
    fault(
        f"an {kind} file under a job's name"
        if kind == "empty"
        else f"a {kind} file under a job's name",
        "refused by name before anything starts; `--remake` replaces it",
    )


def test_a_process_that_always_dies_is_tried_three_times(run, tmp_path, fault):
    jobs = [Toy("deadly", "die"), *(Toy(f"good{i}", "sleep", "0.2") for i in range(6))]
    summary = run(jobs, tmp_path)
    assert summary.failed == {"deadly": "its process died 3 times; memory?"}
    assert len(summary.made) == 6
    assert sum("deadly lost" in line for line in run.told.lines) == 2
    fault("a job that kills its process each time", "the others", "that job, after three tries")


def test_a_job_goes_on_from_what_it_left_when_its_process_is_killed(run, tmp_path, fault):
    summary = run([Toy("job", "die_once")], tmp_path)
    assert summary.made == ["job"]
    assert not leftovers(tmp_path)
    fault("kill -9 of a worker at once after a checkpoint", "the job, from its checkpoint")


def test_a_worker_killed_at_random_moments_loses_what_was_in_flight(client, run, tmp_path, fault):
    runs = tmp_path / "runs.txt"
    jobs = [Toy(f"job{i}", "count", str(runs)) for i in range(30)]
    stop = threading.Event()

    def kill():
        for moment in (0.35, 0.9, 1.7):
            if stop.wait(moment):
                return
            nannies = list(client.cluster.workers.values())
            pid = nannies[int(moment * 100) % 2].pid
            if pid:
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run(jobs, tmp_path / "results")
    stop.set()
    killer.join()
    assert sorted(summary.made) == sorted(job.name for job in jobs)
    repeated = len(runs.read_text().split()) - 30
    assert 0 <= repeated <= 3
    fault(
        "kill -9 of one worker of two, three times", "all 30 jobs", "the jobs in flight, repeated"
    )


@pytest.mark.parametrize("deed", ["sleep", "spin"])
def test_a_job_that_hangs_ends_at_the_limit(deed, run, tmp_path, fault):
    jobs = [Toy("hangs", deed, "600"), *(Toy(f"good{i}", "sleep", "0.1") for i in range(6))]
    started = time.monotonic()
    summary = run(jobs, tmp_path, limit=2)
    assert summary.failed == {"hangs": "it took longer than 2 s"}
    assert len(summary.made) == 6
    assert time.monotonic() - started < 60
    assert run([Toy("after")], tmp_path).made == ["after"]
    if deed == "spin":
        fault("a job that hangs, `--limit 2`", "the others", "that job; its worker is started anew")


def test_a_job_that_takes_all_memory_fails_alone(tmp_path, fault):
    with cluster.local(1, memory="600MB") as client:
        told = Told()
        jobs = [Toy("greedy", "allocate"), Toy("modest")]
        summary = run_batch(jobs, tmp_path, client, told, alike=True)
    assert summary.failed == {"greedy": "its process died 3 times; memory?"}
    assert summary.made == ["modest"]
    fault("a job that runs out of memory", "the others", "that job, after three tries")


class Full(ResultFolder):
    """A folder whose disk is full for a while."""

    full = True

    def write(self, job, content):
        if self.full and job.name != "first":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(job, content)

    def probe(self):
        if getattr(self, "path", None) and self.full and (self.path / "first.txt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().probe()


def test_a_disk_that_fills_stops_the_batch_and_what_was_made_is_kept(
    run, tmp_path, monkeypatch, fault
):
    monkeypatch.setattr("coalora_lib.batch.engine.ResultFolder", Full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    jobs = [Toy("first"), *(Toy(f"job{i}", "sleep", "0.2") for i in range(20))]
    with pytest.raises(
        NotWritten, match=r"No space left on device; \d that were made are in "
    ) as e:
        run(jobs, tmp_path / "results")
    rescue = str(e.value).rpartition(" ")[2]
    kept = os.listdir(rescue)
    assert 1 <= len(kept) <= 2  # those in flight; no other was begun
    assert results(tmp_path / "results") == ["first.txt"]
    assert not leftovers(tmp_path / "results")[len(kept) :]
    monkeypatch.setattr(Full, "full", False)
    assert len(run(jobs, tmp_path / "results").made) == 20
    fault("the disk fills", "what was made, in another folder that is named; nothing is begun")


def test_a_batch_goes_on_when_there_is_space_again(run, tmp_path, monkeypatch, fault):
    monkeypatch.setattr("coalora_lib.batch.engine.ResultFolder", Full)
    room, folder = tmp_path / "room", tmp_path / "results"
    jobs = [Toy("first"), Toy("long", "wait", str(room)), *(Toy(f"job{i}") for i in range(5))]

    def free():
        while not run.told.has_said("nothing new is begun"):
            time.sleep(0.01)
        monkeypatch.setattr(Full, "full", False)
        room.touch()

    freeing = threading.Thread(target=free, daemon=True)
    freeing.start()
    assert len(run(jobs, folder).made) == 7
    freeing.join(60)
    assert not freeing.is_alive()
    fault("the disk is full for a while", "all jobs: results wait in memory")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_real_disk_that_is_full(run, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=2m tmpfs {disk} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        (disk / "other").write_bytes(b"x" * (2**20 - 2**16))
        (disk / "filler").touch()
        jobs = [Toy("fill", "fill_up", str(disk / "filler")), Toy("next"), Toy("third")]
        with pytest.raises(NotWritten, match="No space left on device"):
            run(jobs, disk / "results")
    finally:
        os.system(f"umount {disk}")


@pytest.mark.parametrize("kind", ["file", "readonly", "below a file"])
def test_a_folder_that_cannot_be_written_is_found_before_the_first_run(
    kind, run, tmp_path, monkeypatch, fault
):
    folder, runs = tmp_path / "results", tmp_path / "runs"
    if kind == "file":
        folder.write_text("")
    elif kind == "below a file":
        (tmp_path / "results").write_text("")
        folder = folder / "deeper"
    else:  # root may write anywhere

        def refuse(*_, **__):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match=f"no results can be written into {folder}: "):
        run([Toy("job", "count", str(runs))], folder)
    assert not runs.exists()
    if kind == "readonly":
        fault("a results folder that is read-only, or a file", "found before the first run")


@pytest.mark.parametrize("deed", ["move", "replace", "remake"])
def test_a_folder_that_vanishes_stops_the_batch(deed, run, tmp_path, monkeypatch, fault):
    folder = tmp_path / "results"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    jobs = [Toy(f"job{i}", "sleep", "0.3") for i in range(20)]
    jobs[4] = Toy("job4", deed, str(folder))  # whose own result cannot be written then
    with pytest.raises(NotWritten, match="it is gone, or another is in its place"):
        run(jobs, folder)
    rescued = sum(len(list(each.iterdir())) for each in tmp_path.glob("coalora-results-*"))
    assert folder.exists() == (deed != "move")  # the batch does not make it again
    assert not list(folder.rglob("*.txt"))
    assert 1 <= rescued <= 2
    assert 1 <= len(results(tmp_path / "moved")) < 20
    if deed == "move":
        fault("the results folder vanishes", "what was made, in another folder that is named")


def test_a_worker_does_not_make_a_folder_again_that_vanishes_under_it(tmp_path, monkeypatch):
    folder = ResultFolder(tmp_path / "results")
    home = Home(folder.path, folder.token)
    assert home.scratch(Toy("job")) == folder.path / ".scratch" / "job"
    at = SimpleNamespace(local_directory=str(tmp_path / "dask" / "worker"))
    monkeypatch.setattr("coalora_lib.batch.worker.get_worker", lambda: at)
    monkeypatch.setattr(Home, "is_here", True)  # as it was when it was last looked at
    folder.path.rename(tmp_path / "moved")
    assert home.scratch(Toy("job")) == tmp_path / "dask" / f"coalora-{home.token}" / "job"
    assert not folder.path.exists()


def test_two_batches_into_one_folder_make_each_job_once(client, tmp_path, fault):
    runs, folder = tmp_path / "runs.txt", tmp_path / "results"
    jobs = [Toy(f"job{i}", "count", str(runs)) for i in range(20)]
    ResultFolder(folder)  # one process: what is written under a process's number is written once
    found = []

    def one():
        found.append(run_batch(jobs, folder, client, Told(), alike=True))

    with cluster.local(1) as other:
        thread = threading.Thread(target=one)
        thread.start()
        found.append(run_batch(jobs[::-1], folder, other, Told(), alike=True))
        thread.join()
    assert sorted(runs.read_text().split()) == sorted(job.name for job in jobs)
    assert len(found) == 2
    for summary in found:
        assert len(summary.made) + len(summary.there) == 20
        assert summary.made
    assert not leftovers(folder)
    fault("two batches into one folder", "each job is made once, both tables are whole")


def test_a_claim_is_free_once_its_holder_ends(tmp_path):
    claim = Claim.take(tmp_path, "job")
    assert Claim.take(tmp_path, "job") is None
    assert Claim.take(tmp_path, "other") is not None
    claim.release()
    claim.release()
    again = Claim.take(tmp_path, "job")
    assert again is not None
    claim.release()  # a former holder takes nothing away
    assert Claim.take(tmp_path, "job") is None


def test_a_leftover_claim_of_a_killed_batch_is_no_obstacle(run, tmp_path):
    (tmp_path / ".claims").mkdir()
    (tmp_path / ".claims" / "job.lock").write_text(f"{os.getpid()}\n")  # the same number even
    assert run([Toy("job")], tmp_path).made == ["job"]


def test_a_clock_that_jumps_decides_nothing(run, tmp_path, fault):
    runs = tmp_path / "runs.txt"
    folder = tmp_path / "results"
    run([Toy("job0", "count", str(runs)), Toy("bad", "fail")], folder)
    ResultFolder(folder).claim(Toy("job1")).file.close()  # as a killed batch leaves it
    for moment, path in enumerate(path for path in folder.rglob("*") if path.is_file()):
        os.utime(path, (0, 2**33 * (moment % 2)))  # 1970, or 2242
    jobs = [Toy(f"job{i}", "count", str(runs)) for i in range(4)]
    summary = run([*jobs, Toy("bad", "fail")], folder)
    assert summary.there == ["job0"]
    assert sorted(summary.made) == ["job1", "job2", "job3"]
    assert list(summary.earlier) == ["bad"]
    fault("the clock jumps by decades between two batches", "everything")


@pytest.mark.parametrize(
    "path", sorted(Path(batch.__file__).parent.glob("*.py")), ids=lambda p: p.stem
)
def test_no_module_reads_the_time_of_day(path):
    tree = ast.parse(path.read_text())
    read = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not read & {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now"}
    assert not any(name.endswith(("st_mtime", "st_ctime")) for name in read)


def test_everything_listens_on_the_loopback_only(client):
    driver = psutil.Process()
    workers = [psutil.Process(nanny.pid) for nanny in client.cluster.workers.values()]
    listening = [
        connection.laddr.ip
        for process in (driver, *workers)
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("named", "count", "expected"),
    [(None, 2, ["0", "1"]), ("2,5", 2, ["2", "5"]), (None, 0, [""]), ("", 0, [""])],
)
def test_a_cluster_keeps_to_the_gpus_it_is_given(named, count, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert cluster.visible_gpus() == expected


def test_workers_keep_memory_as_any_process_does(client):
    """Dask's own setting gives it back at each chance, which makes training slower by half."""
    assert set(client.run(os.getenv, "MALLOC_TRIM_THRESHOLD_").values()) == {None}


def test_workers_share_gpus_evenly(tmp_path):
    with cluster.local(3, gpus=["4", "7"]) as client:
        found = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert sorted(found.values()) == ["4", "4", "7"]
