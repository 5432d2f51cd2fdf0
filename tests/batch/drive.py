"""A batch in a process of its own: ``python -m tests.batch.drive FOLDER COUNT SECONDS [ADDRESS]``."""

import sys
from pathlib import Path

from coalora_lib.batch import cluster
from coalora_lib.batch.engine import run_batch
from coalora_lib.batch.progress import Lines
from tests.batch.toys import Toy


def main(folder, count, seconds, address=""):
    jobs = [Toy(f"job{i}", "sleep", seconds) for i in range(int(count))]
    opened = cluster.connected(address) if address else cluster.local(2)
    with opened as client:
        Path(folder).mkdir(exist_ok=True)
        run_batch(jobs, folder, client, Lines(), alike=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
