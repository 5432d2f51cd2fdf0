"""The command line: ``coalora --help``."""

from __future__ import annotations

import typer

from coalora_lib.cli import models
from coalora_lib.cli.chapters import book, outputs, render
from coalora_lib.cli.runs import experiments, landscape, options, reproduce, scale, search_ablation

__all__ = ["app"]

_RUN, _SIZE = "COALORA_DATA_DIR=~/glue coalora", "--dataset sst2 --profile standard"
_ARMS = "--arm search-walk --arm search-frozen"
_RECORD = "book/results/sst2/coa-lora-rank4-sst2-standard-seed0.json"
#: Panel of the help, command, an example of its use.
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
    ("A model of your own", models.adapt, "coalora adapt run --bits 3.1 --out phone"),
    ("A model of your own", models.report, "coalora report run --picture run.png"),
    ("The book", book, f"{_RUN} book {_SIZE}"),
    ("The book", outputs, "coalora outputs 04 && git diff book/"),
    ("The book", render, "coalora render --strict"),
    ("Experiments", experiments, f"{_RUN} experiments {_SIZE} --seeds 3 --jobs 12"),
    ("Experiments", options, f"{_RUN} options {_SIZE}"),
    ("Experiments", search_ablation, f"{_RUN} search-ablation {_SIZE} {_ARMS}"),
    ("Experiments", reproduce, f"{_RUN} reproduce {_RECORD}"),
    ("Measurements", landscape, "coalora landscape --layers 36 --landscapes 20 --strategy walk"),
    ("Measurements", scale, "coalora scale paper paper-llama-2-7b --results book/results/scale"),
)

app = typer.Typer(
    help="Run and render the CoA-LoRA book.",
    epilog="Examples:\n\n" + "\n\n".join(example for _, _, example in _COMMANDS),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for _panel, _command, _example in _COMMANDS:
    app.command(rich_help_panel=_panel, epilog=f"Example: {_example}")(_command)
