"""The command line: ``coalora --help``.

Nothing heavy is imported before a command runs: torch and transformers take ten seconds and more,
and help needs none of them. So a command imports its work in its own body, and what its options
allow is looked up when one is checked (:mod:`coalora_lib.cli.names`).
"""

from __future__ import annotations

from typing import Annotated

import typer

from coalora_lib.cli import batches, models
from coalora_lib.cli.adapting import adapt
from coalora_lib.cli.chapters import book, new, outputs, pdf, render
from coalora_lib.cli.errors import TRACEBACK, TRACEBACK_VARIABLE, Commands
from coalora_lib.cli.runs import experiments, landscape, options, reproduce, scale, search_ablation

__all__ = ["app"]

_RUN, _SIZE = "COALORA_DATA_DIR=~/glue coalora", "--dataset sst2 --profile standard"
_ARMS = "--arm search-walk --arm search-frozen"
_RECORD = "book/results/sst2/coa-lora-rank4-sst2-standard-seed0.json"
#: Panel of the help, command, an example of its use; panels and commands stand in this order.
_COMMANDS = (
    (
        "A model of your own",
        models.train,
        "coalora train --data reviews.csv --text review --label stars --budgets 2.25-5 --out run",
    ),
    (
        "A model of your own",
        models.evaluate,
        "coalora evaluate run --bits 2.5,3,4 --data test.csv",
    ),
    (
        "A model of your own",
        adapt,
        "coalora adapt run --bits 3.1 --out phone\n"
        "  coalora adapt run --bits 4.5 --format gguf --out phone\n"
        "  coalora adapt all-MiniLM-L6-v2 --no-training --texts texts.txt --bits 3 --out phone",
    ),
    ("A model of your own", models.report, "coalora report run --picture run.png"),
    ("The book", book, f"{_RUN} book {_SIZE}"),
    ("The book", outputs, "coalora outputs 04 && git diff book/"),
    ("The book", render, "coalora render --strict"),
    ("The book", pdf, "coalora pdf --out book.pdf"),
    ("The book", new, "coalora new 11_pruning --title 'Pruning heads'"),
    ("Batches", batches.batch, "coalora batch grid.yaml --processes 2 --results runs"),
    ("Batches", batches.results, "coalora results runs --where rank=4 --by method,budget"),
    ("Experiments", experiments, f"{_RUN} experiments {_SIZE} --seeds 3 --jobs 12"),
    ("Experiments", options, f"{_RUN} options {_SIZE}"),
    ("Experiments", search_ablation, f"{_RUN} search-ablation {_SIZE} {_ARMS}"),
    ("Experiments", reproduce, f"{_RUN} reproduce {_RECORD}"),
    ("Measurements", landscape, "coalora landscape --layers 36 --landscapes 20 --strategy walk"),
    ("Measurements", scale, "coalora scale paper paper-llama-2-7b --results book/results/scale"),
)

app = typer.Typer(
    cls=Commands,
    help="Run and render the CoA-LoRA book.",
    epilog="\b\nExamples:\n" + "\n".join(f"  {example}" for _, _, example in _COMMANDS),
    add_completion=False,
    rich_markup_mode=None,  # importing rich takes as long as all else
)
for _panel, _command, _example in _COMMANDS:
    app.command(rich_help_panel=_panel, epilog=f"\b\nExample:\n  {_example}")(_command)


@app.callback()
def _shared(
    traceback: Annotated[
        bool,
        typer.Option(
            TRACEBACK,
            envvar=TRACEBACK_VARIABLE,
            help="Show the whole of an error, not one line; also after a command's name.",
        ),
    ] = False,
) -> None:
    """Options of every command; :class:`Commands` reads them."""
