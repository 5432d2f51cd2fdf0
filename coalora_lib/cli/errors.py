"""What goes wrong in a command, said in one line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from subprocess import SubprocessError
from typing import Any

import typer
from typer.core import TyperGroup

from coalora_lib.validation import flat

TRACEBACK, TRACEBACK_VARIABLE = "--traceback", "COALORA_TRACEBACK"
#: Exit statuses, as shells and Unix tools have them.
FAILED, INTERRUPTED = 2, 130
#: Errors whose message is written for users; of others the type is named too.
EXPECTED = (ValueError, OSError, RuntimeError, ArithmeticError, SubprocessError)
#: Characters of a line; messages of compilers and of GPUs' drivers fill pages.
LONGEST = 800


class Commands(TyperGroup):
    """Commands in panels; an error is one line on stderr and exit status 2, 130 if interrupted.

    ``--traceback`` may stand before or after a command's name. Commands return None.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """As Typer does with rich: a section for each panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            row = (name, command.get_short_help_str(limit=200))
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append(row)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        if TRACEBACK in words:
            words = [TRACEBACK, *(word for word in words if word != TRACEBACK)]
        try:  # not standalone: Typer would print errors in its own way
            status = super().main(
                words, prog_name, complete_var, False, windows_expand_args, **extra
            )
        except Exception as error:
            self._say(error)
            sys.exit(FAILED)
        if status == INTERRUPTED:
            typer.echo("coalora: interrupted", err=True)
        sys.exit(status or 0)

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """As it is, and the context is kept: it knows whether all of an error is wanted."""
        self._context = super().make_context(*args, **settings)
        return self._context

    def _say(self, error: Exception) -> None:
        context = getattr(self, "_context", None)
        if context is not None and context.params.get("traceback"):
            traceback.print_exception(error)
        else:
            typer.echo(one_line(error), err=True)


def one_line(error: Exception) -> str:
    """The message of an error, without line breaks."""
    if isinstance(error, typer.Abort):
        return "coalora: aborted"
    if not hasattr(error, "format_message"):
        return f"coalora: {_message(error)}"
    # Of Typer: an argument that cannot be taken.
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "coalora"
    return f"{command}: {_flat(error.format_message())} ({command} --help)"


def _message(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and "coalora_lib" not in error.name:
        missing = f"the package {error.name!r} is missing"
        return f'{missing}; install it with: pip install "coalora-lib[book]"'
    if isinstance(error, OSError) and error.strerror:
        return _flat(
            error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        )
    text = _flat(str(error))
    if not text or not isinstance(error, EXPECTED):
        said = f"{type(error).__name__}: {text}" if text else type(error).__name__
        text = f"{said} ({TRACEBACK} shows where)"
    cause = error.__cause__
    if isinstance(cause, EXPECTED) and _flat(str(cause)) not in text:
        text += f": {_message(cause)}"
    return text


def _flat(text: str) -> str:
    text = flat(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({TRACEBACK} shows all)"
