"""Command lines: any command with any words, its work left out."""

import click
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from coalora_lib import recipes
from coalora_lib.batch import chapters as batch_chapters
from coalora_lib.batch import cluster
from coalora_lib.book import execution, pictures
from coalora_lib.cli import app, runs
from coalora_lib.cli.errors import FAILED
from coalora_lib.experiments import scale
from coalora_lib.testbed import comparison
from tests.fuzz.documents import NUMBERS, TEXTS
from tests.fuzz.judge import LIMIT, count, inputs, processor_time

COMMANDS = typer.main.get_command(app).commands
#: What does the work of a command.
WORK = [
    (recipes, "train_run"),
    (recipes, "evaluate_run"),
    (recipes, "adapt"),
    (recipes, "adapt_to_texts"),
    (recipes, "report"),
    (pictures, "picture_of_run"),
    (batch_chapters, "execute_book"),
    (cluster, "local"),
    (cluster, "connected"),
    (cluster, "queued"),
    (execution, "refresh_outputs"),
    (execution, "copy_sources"),
    (execution, "render"),
    (runs, "_run_missing"),
    (scale, "measure_scale"),
    (comparison, "compare_on_landscape"),
]
WORDS = [
    "quick", "sst2", "embedded", "coa-lora", "walk", "2.5-5", "3", "2.5,3", "5-2", "-", "--", ".",
    "/", "/dev/null", "packed", "text", "int", "float32", "paper", "4,", "nan-nan",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS).map(str),
    st.sampled_from(WORDS),
    st.text(max_size=6),
    st.integers(-5, 5).map(str),
)


@st.composite
def words(draw):
    """A command with some of its options, most with a value, and a few stray words."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    made = [name]
    for option in COMMANDS[name].params:
        takes = option.required or draw(st.integers(0, 3)) == 0
        if not takes or draw(st.integers(0, 9)) == 0:
            continue
        if isinstance(option, click.Option) or option.param_type_name == "option":
            made.append(option.opts[0])
        if not getattr(option, "is_flag", False):
            made.append(draw(VALUES))
    if draw(st.integers(0, 4)) == 0:
        made.insert(draw(st.integers(0, len(made))), draw(VALUES | st.just("--traceback")))
    return made


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Work is left out, and the current folder is an empty one."""

    def begin(*_, **__):
        raise typer.Exit

    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        for module, name in WORK:
            patch.setattr(module, name, begin)
        patch.chdir(folder)
        yield folder


@inputs(150)
@given(words())
def test_commands(elsewhere, given_words):
    def call():
        found = CliRunner().invoke(app, given_words, prog_name="coalora")
        assert found.exit_code in (0, FAILED), found.output
        if found.exit_code == FAILED and "--traceback" not in given_words:
            said = found.stderr
            assert said.startswith("coalora"), said
            assert len(said.splitlines()) == 1, said
            assert "shows where" not in said, said
        return found.exit_code

    with processor_time(LIMIT):
        status = call()
    count("command lines", "refused" if status == FAILED else "accepted")
    assert list(elsewhere.iterdir()) == []
