"""Where jobs run: processes of this machine, a Dask scheduler that is there, a queue's nodes.

Each worker is one process with one thread for Dask, since a job changes its process's folder and
output. On this machine all talk over the loopback. With an address, or with a queue, Dask's
messages, which hold code, go over the network: where others have access to it, give Dask TLS, by
``DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true`` and ``DASK_DISTRIBUTED__COMM__TLS__...`` (CA
file, and certificate and key of scheduler, workers and client), and an address ``tls://...``.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, Literal

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster
from pydantic import BaseModel, ConfigDict, Field

LOOPBACK = "127.0.0.1"
#: Seconds that a scheduler is tried to be reached, also after it went away.
PATIENCE = 30
#: What is done about a worker's death is the engine's to say: Dask is not to try again. Nor is it
#: to take a worker for dead by the time of day: a broken connection tells.
_SETTINGS: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-ttl": None,
    # What nobody looks at costs a tenth of a core.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
    # Memory given back at each chance makes training half as slow again.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}


class Queue(BaseModel):
    """What a queue is asked for, in its own words; each job of it is one worker."""

    model_config = ConfigDict(extra="forbid")

    system: Literal["slurm", "pbs"]
    name: str | None = None
    cores: int = Field(default=4, ge=1)
    memory: str = "16GB"
    walltime: str = "04:00:00"
    jobs: int = Field(default=1, ge=1)
    directives: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """For dask-jobqueue."""
        of_system: dict[str, Any] = {"job_cpu": self.cores}
        if self.system == "pbs":
            of_system = {"resource_spec": f"select=1:ncpus={self.cores}:mem={self.memory}"}
        return of_system | {
            "queue": self.name,
            "cores": 1,  # for Dask, whose threads these are
            "memory": self.memory,
            "processes": 1,
            "walltime": self.walltime,
            "job_extra_directives": list(self.directives),
            "job_script_prologue": [
                f"export OMP_NUM_THREADS={self.cores}",
                f"export MALLOC_TRIM_THRESHOLD_={2**30} MALLOC_MMAP_THRESHOLD_={2**25}",
            ],
        }

    def script(self) -> str:
        """The script that would be submitted, without a scheduler's address."""
        from dask_jobqueue.pbs import PBSJob
        from dask_jobqueue.slurm import SLURMJob

        made = {"slurm": SLURMJob, "pbs": PBSJob}[self.system]
        job = made("<scheduler>", "<worker>", job_name="coalora", **self.settings())
        return job.job_script().rstrip() + "\n"


@contextmanager
def local(
    processes: int, gpus: Sequence[str] | None = None, memory: str | None = None
) -> Iterator[Client]:
    """Processes of this machine, which share its cores.

    They end with this one, however it ends.

    Args:
        gpus: shared evenly, as CUDA_VISIBLE_DEVICES names them; None leaves that as it is.
        memory: a worker that has nearly this much is killed, such as "8GB"; None for no limit.
    """
    _quiet()
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    common = {
        "nthreads": 1,
        "host": LOOPBACK,
        "dashboard_address": f"{LOOPBACK}:0",
        "dashboard": False,
        "memory_limit": memory or 0,
        "silence_logs": logging.CRITICAL,
    }
    workers = {}
    for number in range(processes):
        own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        workers[number] = {"cls": Nanny, "options": common | {"env": environment | own}}
    dashboard = find_spec("bokeh") is not None
    options = {"host": LOOPBACK, "dashboard_address": f"{LOOPBACK}:0", "dashboard": dashboard}
    # A nanny whose worker is away is starting another, even if jobs kill one after the other.
    patient = {"distributed.deploy.lost-worker-timeout": "1000 days"}
    with (
        dask.config.set(_SETTINGS | patient),
        SpecCluster(
            workers, {"cls": Scheduler, "options": options}, silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster, timeout=PATIENCE) as client,
    ):
        try:
            yield client
        except BaseException:  # what still runs is lost anyway: nobody is to wait for it
            for nanny in cluster.workers.values():
                nanny.auto_restart = False
                if nanny.pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(nanny.pid, signal.SIGKILL)
            raise


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A scheduler that is there, such as ``tcp://node:8786``; its workers are left running."""
    _quiet()
    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no scheduler answers at {address}: {error}") from None
    with client:
        yield client


@contextmanager
def queued(queue: Queue) -> Iterator[Client]:
    """Workers that a queue starts; they are given back at the end."""
    from dask_jobqueue.pbs import PBSCluster
    from dask_jobqueue.slurm import SLURMCluster

    _quiet()
    made = {"slurm": SLURMCluster, "pbs": PBSCluster}[queue.system]
    with (
        dask.config.set(_SETTINGS),
        made(job_name="coalora", n_workers=queue.jobs, **queue.settings()) as cluster,
        Client(cluster, timeout=PATIENCE) as client,
    ):
        yield client


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; [""] without any."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    if named == [""]:
        named = [str(number) for number in range(count)]
    return named[:count] or [""]


def _quiet() -> None:
    """Dask's own warnings say what the engine says better."""
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
