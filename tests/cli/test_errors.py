"""What goes wrong in a command is one line, with exit status 2."""

import subprocess

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from coalora_lib.cli import app
from coalora_lib.cli.errors import LONGEST, Commands, one_line


class Sizes(BaseModel):
    layers: int
    rank: int


def caused(error, cause):
    error.__cause__ = cause
    return error


def invalid():
    try:
        Sizes(layers="many", rank=None)
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("rank=0\nmust be  positive"), "rank=0 must be positive"),
        (FileNotFoundError(2, "No such file", "x.json"), "x.json: No such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(2, "No such file", "\x1b[2J"), r"\x1b[2J: No such file"),
        (ValueError("\x1b[2J\ud800"), r"\x1b[2J\ud800"),
        (FloatingPointError("the loss is nan"), "the loss is nan"),
        (RuntimeError(), "RuntimeError (--traceback shows where)"),
        (KeyError("rank"), "KeyError: 'rank' (--traceback shows where)"),
        (
            ModuleNotFoundError("No module named 'pymoo'", name="pymoo"),
            "the package 'pymoo' is missing; install it with: pip install \"coalora-lib[book]\"",
        ),
        (caused(RuntimeError("1 run failed"), ValueError("nan")), "1 run failed: nan"),
        (caused(ValueError("x: no JSON"), ValueError("no JSON")), "x: no JSON"),
        (caused(ValueError("x"), KeyError("y")), "x"),
        (
            subprocess.CalledProcessError(128, ["git", "merge-file"]),
            "Command '['git', 'merge-file']' returned non-zero exit status 128.",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_one_line(error, line):
    assert one_line(error) == f"coalora: {line}"


def test_messages_of_other_libraries_become_one_line_too():
    assert "2 validation errors for Sizes layers Input should be" in one_line(invalid())
    long = one_line(RuntimeError("CUDA error\n" * LONGEST))
    assert len(long) < LONGEST + 50
    assert long.endswith("... (--traceback shows all)")


@pytest.fixture
def failing():
    """Commands as the library's, of which one fails and one is interrupted."""
    made = typer.Typer(cls=Commands, rich_markup_mode=None)
    made.callback()(app.registered_callback.callback)

    @made.command()
    def fail():
        raise ValueError("rank=0 must be positive")

    @made.command()
    def interrupted():
        raise KeyboardInterrupt

    @made.command()
    def fine():
        typer.echo("done")

    return made


def test_a_failure_is_one_line_and_status_2(failing):
    found = CliRunner().invoke(failing, ["fail"])
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr == "coalora: rank=0 must be positive\n"


def test_an_interruption_is_status_130(failing):
    found = CliRunner().invoke(failing, ["interrupted"])
    assert (found.exit_code, found.stderr) == (130, "coalora: interrupted\n")


def test_success_is_status_0(failing):
    found = CliRunner().invoke(failing, ["fine"])
    assert (found.exit_code, found.output) == (0, "done\n")


@pytest.mark.parametrize("words", [["--traceback", "fail"], ["fail", "--traceback"], ["fail"]])
def test_all_of_an_error_on_request(words, failing):
    env = {} if "--traceback" in words else {"COALORA_TRACEBACK": "1"}
    found = CliRunner(env=env).invoke(failing, words)
    assert found.exit_code == 2
    assert "Traceback (most recent call last)" in found.stderr
    assert found.stderr.endswith("ValueError: rank=0 must be positive\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["bok"], "coalora: No such command 'bok'. Did you mean 'book'? (coalora --help)"),
        (["--fast"], "coalora: No such option: --fast (coalora --help)"),
        (["book", "--sed", "1"], "coalora book: No such option: --sed"),
        (["scale"], "coalora scale: Missing argument 'profiles'. (coalora scale --help)"),
        (["landscape", "--layers"], "coalora: Option '--layers' requires an argument."),
        (["landscape", "--layers", "x"], "coalora landscape: Invalid value for '--layers'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_call_that_cannot_be_taken_is_one_line_too(words, line):
    found = CliRunner().invoke(app, words, prog_name="coalora")
    assert found.exit_code == 2
    assert found.stderr.startswith(line)
    assert len(found.stderr.splitlines()) == 1


def test_no_words_at_all_are_a_call_for_help():
    found = CliRunner().invoke(app, [])
    assert found.exit_code == 0
    assert "The book:" in found.stdout
