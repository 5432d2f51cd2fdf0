"""The page on the command line, made from the application: its help is written once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import typer
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click
from typer.main import get_command

#: Where the page is, in the book's sources.
PAGE = Path("book/reference/command_line.md")
NAME = "coalora"


def setup(app: Sphinx) -> None:
    """Write the page before Sphinx looks for its sources."""
    app.add_config_value("command_line", None, "env", [str])
    app.connect("builder-inited", write_page)


def write_page(app: Sphinx) -> None:
    """One file of Markdown, of the application that ``command_line`` names (module:name)."""
    if app.config.command_line:
        page = Path(app.srcdir) / PAGE
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n".join(_page(resolve_name(app.config.command_line))) + "\n")


def _page(application: typer.Typer) -> Iterator[str]:
    group: Any = get_command(application)
    panels = [
        (panel, list(commands))
        for panel, commands in groupby(group.commands.values(), lambda each: each.rich_help_panel)
    ]
    yield from ("# The command line", "", group.help, "", "```console", f"$ {NAME} --help", "```")
    for panel, commands in panels:
        yield from ("", f"**{panel}**", "")
        for command in commands:
            short = command.get_short_help_str(200)
            yield f"- [`{NAME} {command.name}`](#{NAME}-{command.name}): {short}"
    yield from ("", "An option of every command:", "")
    context = typer.Context(group)
    for option in group.params:
        name, text = option.get_help_record(context)
        yield f"- `{name}`: {text}"
    for panel, commands in panels:
        yield from ("", f"## {panel}", "")
        for command in commands:
            yield from (f"({NAME}-{command.name})=", _described(command))


def _described(command: Any) -> str:
    """What Typer's own documentation of a command says, its example as code."""
    _, _, example = command.epilog.partition("Example:\n")
    lines = (line.strip() for line in example.splitlines())
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), indent=2, call_prefix=NAME)
    code = "\n".join(("**Example**:", "", "```bash", *lines, "```"))
    return text.replace(command.epilog, code)
