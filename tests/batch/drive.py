"""A batch in a process of its own: ``python -m tests.batch.drive FOLDER COUNT SECONDS``."""

import sys

from coalora_lib.batch import cluster
from coalora_lib.batch.engine import run_batch
from coalora_lib.batch.progress import Lines
from tests.batch.toys import Toy


def main(folder, count, seconds):
    jobs = [Toy(f"job{i}", "sleep", seconds) for i in range(int(count))]
    with cluster.local(2) as client:
        run_batch(jobs, folder, client, Lines(), alike=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
