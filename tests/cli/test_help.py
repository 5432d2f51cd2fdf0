"""Help: it names every command, and is there before anything heavy is imported."""

import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from coalora_lib.cli import app

COMMANDS = sorted(get_command(app).commands)
#: Each takes a second and more to import.
HEAVY = {
    "matplotlib",
    "nbformat",
    "numpy",
    "pandas",
    "papermill",
    "peft",
    "rich",
    "scipy",
    "torch",
    "tqdm",
    "transformers",
}
HELPED = """
import sys
from coalora_lib.__main__ import main
heavy, commands = (words.split(",") for words in sys.argv[1:])
for words in [["--help"], *([name, "--help"] for name in commands)]:
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
    assert not set(heavy) & set(sys.modules), (words, set(heavy) & set(sys.modules))
"""
ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

MISSING = sys.argv.pop(1)
sys.meta_path.insert(0, Absent())
from coalora_lib.__main__ import main
main()
"""


def python(text, *words):
    line = [sys.executable, "-c", text, *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_help_loads_nothing_heavy():
    done = python(HELPED, ",".join(HEAVY), ",".join(COMMANDS))
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command_with_an_example():
    found = CliRunner().invoke(app, ["--help"])
    assert found.exit_code == 0
    for name in COMMANDS:
        assert f"coalora {name} " in found.output


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example(name):
    found = CliRunner().invoke(app, [name, "--help"])
    assert found.exit_code == 0
    assert "Example:\n    " in found.output
    assert f"coalora {name} " in found.output.partition("Example:")[2]


@pytest.mark.parametrize(
    ("package", "words"),
    [("typer", ["--help"]), ("nbformat", ["render"])],
    ids=["typer", "other"],
)
def test_without_the_extra_the_command_says_what_to_install(package, words):
    done = python(ABSENT, package, *words)
    assert done.returncode == 2
    assert done.stderr == (
        f"coalora: the package {package!r} is missing; install it with: "
        'pip install "coalora-lib[book]"\n'
    )
