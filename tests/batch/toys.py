"""Jobs that do one thing, for the engine's faults; known to workers by this module's name."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Toy:
    """Writes its name; what it does before is in ``deed``, with a number or a path."""

    name: str
    deed: str = ""
    about: str = ""
    kept: str | None = None
    dataset: str | None = None

    @property
    def file(self):
        return f"{self.name}.txt"

    def run(self, scratch):
        if self.deed:
            globals()[self.deed](self, Path(scratch))
        return self.name.encode()

    def check(self, content):
        if content != self.name.encode():
            raise ValueError(f"content is {content[:20]!r}, {self.name!r} is wanted")


def move(toy, _):
    Path(toy.about).rename(Path(toy.about).with_name("moved"))


def replace(toy, scratch):
    """As a disk that goes away: an empty folder is where it was."""
    move(toy, scratch)
    Path(toy.about).mkdir()


def remake(toy, scratch):
    """As a checkpoint that makes the folders that it needs."""
    move(toy, scratch)
    scratch.mkdir(parents=True)


def sleep(toy, _):
    time.sleep(float(toy.about))


def wait(toy, _):
    """For a file, that is made meanwhile."""
    while not Path(toy.about).exists():
        time.sleep(0.01)


def fail(toy, scratch):
    print("said before")
    (scratch / "left.txt").write_text("half")
    raise KeyError("two\nlines")


def die(toy, _):
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(toy, scratch):
    """Counts its runs in its own folder, and dies in the first."""
    count = scratch / "runs"
    count.write_text(count.read_text() + "x" if count.exists() else "x")
    if len(count.read_text()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def allocate(toy, _):
    held = []
    while True:
        held.append(bytearray(2**24))
        held[-1][::4096] = b"x" * 4096
        time.sleep(0.01)


def spin(toy, _):
    """Never lets another thread of the process run for long."""
    while True:
        pass


def count(toy, _):
    """One more line in a file for each time that it is run."""
    with open(toy.about, "a") as file:
        file.write(f"{toy.name}\n")
    time.sleep(0.1)


def whole_process(toy, _):
    Path(toy.about).write_text(str(os.getpid()))
    time.sleep(60)


def where(toy, _):
    Path(toy.about).write_text(os.getcwd())


def fill_up(toy, _):
    """Fills the disk that a file is on."""
    with open(toy.about, "wb") as file:
        try:
            while True:
                file.write(b"x" * 1024)
                file.flush()
        except OSError:
            return


def compute(toy, _):
    """Computes in one thread."""
    total = 0
    for number in range(int(toy.about)):
        total += number * number
