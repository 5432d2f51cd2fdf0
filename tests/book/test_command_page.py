"""The page on the command line: made from the application, nothing of its help is left out."""

import pytest
from typer.main import get_command

from coalora_lib.book.pages.commands import _page
from coalora_lib.cli import app

COMMANDS = get_command(app).commands


@pytest.fixture(scope="module")
def parts():
    """The text on each command by its name."""
    text = "\n".join(_page(app))
    return {part.partition(")")[0]: part for part in text.split("\n(coalora-")[1:]}


def test_every_command_is_there_once_and_linked_from_the_top(parts):
    assert set(parts) == set(COMMANDS)
    top = "\n".join(_page(app)).partition("\n## ")[0]
    for name in COMMANDS:
        assert f"- [`coalora {name}`](#coalora-{name}): " in top


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_all_of_its_options_and_its_example_as_code(name, parts):
    for option in COMMANDS[name].params:
        flags = option.opts if option.param_type_name == "option" else [option.name]
        assert f"* `{flags[0]}" in parts[name]
    example = COMMANDS[name].epilog.rpartition("Example:\n")[2].split("\n")[0].strip()
    assert f"```bash\n{example}\n" in parts[name]
    assert "\b" not in parts[name]
