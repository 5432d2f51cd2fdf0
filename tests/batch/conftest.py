"""One local cluster for all faults that leave it as it was, and the table of faults."""

import json

import pytest

from coalora_lib.batch import cluster
from coalora_lib.batch.engine import run_batch
from coalora_lib.batch.progress import Lines
from coalora_lib.files import atomic_file


@pytest.fixture(scope="session")
def faults(request):
    """What the tests of faults found, a row each, for the book."""
    found = []
    yield found
    if found and (path := request.config.getoption("--record")):
        with atomic_file(path) as partial:
            partial.write_text(json.dumps({"faults": found}, indent=1) + "\n")


@pytest.fixture
def fault(faults):
    """Called at the end of a test that passed: what was tried, what survived, what was lost."""

    def noted(tried, survived, lost="nothing"):
        faults.append({"tried": tried, "survived": survived, "lost": lost})

    return noted


@pytest.fixture(scope="session")
def client():
    with cluster.local(2) as found:
        yield found


@pytest.fixture
def run(client):
    """Run jobs on the common cluster; progress is kept in ``run.told``."""

    def made(jobs, folder, **options):
        made.told = Told()
        return run_batch(jobs, folder, client, made.told, alike=True, **options)

    made.told = Told()
    return made


class Told(Lines):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def said(self, text):
        self.lines.append(text)

    def has_said(self, words):
        return any(words in line for line in self.lines)
