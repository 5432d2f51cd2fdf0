"""Commands for a model of one's own: train, evaluate, adapt, report."""

# What does the work is imported in the commands: `--help` is to answer at once.

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coalora_lib.cli.shared import AsJson, Seed, positive, show

if TYPE_CHECKING:
    from coalora_lib.recipes import RunFolder, Settings

RunPath = Annotated[Path, typer.Argument(help="Folder that `coalora train` wrote.")]


Data = Annotated[str, typer.Option(help="Table of texts: .csv, .tsv, .jsonl or .parquet.")]
Out = Annotated[Path, typer.Option(help="Folder of the run; an unfinished run continues.")]
Text = Annotated[str, typer.Option(help="Column with the texts.")]
Label = Annotated[str | None, typer.Option(help="Column with the labels.")]
Second = Annotated[
    str | None, typer.Option(help="Column with second texts, or with texts to write.")
]
Model = Annotated[str, typer.Option(help="Name on the hub, a folder, or all-MiniLM-L6-v2.")]
Dtype = Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16 or float64.")]
Task = Annotated[
    str | None,
    typer.Option(help="Kind of task, such as causal-lm; by default from the labels."),
]
Validation = Annotated[
    str | None, typer.Option(help="Table to validate on; by default a tenth of the rows.")
]
Budgets = Annotated[str, typer.Option(help="Mean bits, from fewest to most.")]
Configurations = Annotated[int, typer.Option(help="Configurations to train on.", min=1)]
Space = Annotated[str, typer.Option(help="What layers may be quantized to.")]
Rank = Annotated[int, typer.Option(help="Rank of LoRA.", min=1)]
Alpha = Annotated[float, positive("LoRA is scaled by alpha / rank")]
Epochs = Annotated[float, positive("Passes over the texts")]
BatchSize = Annotated[int, typer.Option(help="Texts in a step.", min=1)]
LearningRate = Annotated[float, positive("Learning rate at its peak")]
MaxLength = Annotated[
    int, typer.Option(help="Tokens, at most what the model takes; longer texts are cut.", min=2)
]
Searches = Annotated[int, typer.Option(help="Searches during the training.", min=0)]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Address of a Dask scheduler, whose workers score what searches propose."),
]


def train(
    data: Data,
    out: Out,
    text: Text = "text",
    label: Label = None,
    second: Second = None,
    model: Model = "sentence-transformers/all-MiniLM-L6-v2",
    dtype: Dtype = "float32",
    task: Task = None,
    validation: Validation = None,
    budgets: Budgets = "2.25-5",
    configurations: Configurations = 50,
    space: Space = "nf",
    rank: Rank = 16,
    alpha: Alpha = 16,
    epochs: Epochs = 3,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 1e-3,
    max_length: MaxLength = 128,
    searches: Searches = 0,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a quantized model once, for every bit budget.

    Called again with the same options, a stopped training continues. On several processes:
    `accelerate launch -m coalora_lib train ...`.
    """
    from coalora_lib.recipes import Settings

    settings = Settings.of(
        model=model, dtype=dtype, data=data, text=text, label=label, second=second, kind=task,
        validation=validation, budgets=bit_range(budgets), configurations=configurations,
        space=space, rank=rank, alpha=alpha, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, max_length=max_length, searches=searches, seed=seed,
    )  # fmt: skip
    run = _trained(out, settings, scheduler)
    if run.described.outcome is None:  # another process of the same run writes it
        return
    outcome = run.outcome
    show(
        {"run": str(run.path), **outcome.model_dump(mode="json", exclude={"losses"})},
        as_json,
        f"{run.path}: {outcome.kind}, {outcome.examples['training']} texts, "
        f"{outcome.seconds:.0f} s. On {outcome.examples['validation']} others:",
        outcome.metrics,
    )


def _trained(out: Path, settings: "Settings", scheduler: str | None) -> "RunFolder":
    """Train, with searches' scores from the workers of a scheduler if one is given."""
    from coalora_lib.recipes import train_run

    if scheduler is None:
        return train_run(out, settings)
    from coalora_lib.batch import cluster
    from coalora_lib.batch.scoring import WorkerScorer

    with cluster.connected(scheduler) as client:
        return train_run(out, settings, WorkerScorer(client))


def evaluate(
    run: RunPath,
    data: Annotated[str, typer.Option(help="Table with the columns that the run was trained on.")],
    bits: Annotated[str, typer.Option(help="Mean bits, with commas between.")] = "2.5,3,4",
    as_json: AsJson = False,
) -> None:
    """Measure a run's model at some bits."""
    from coalora_lib.recipes import RunFolder, evaluate_run

    found = evaluate_run(RunFolder.open(run), bit_list(bits), data)
    show({"run": str(run), "metrics": found}, as_json, f"{run} on {data}:", found)


def report(
    run: RunPath,
    picture: Annotated[Path | None, typer.Option(help="File for a picture, .png or .svg.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a run's layers, bits, sizes, training and searches."""
    from coalora_lib.recipes import RunFolder
    from coalora_lib.recipes import report as report_run

    found = report_run(RunFolder.open(run))
    if picture is not None:
        from coalora_lib.book.pictures import picture_of_run

        picture_of_run(found, picture)
    outcome = found.outcome
    last = f"{outcome['losses'][-1]:.4g}" if outcome["losses"] else "none"
    rows = [
        {**size, **{k: v for k, v in row.items() if k != "bits"}}
        for size, row in zip(found.sizes, outcome["metrics"], strict=True)
    ]
    lines = [
        found.parameters,
        f"training               {len(outcome['losses']):>14,}  steps, last loss {last}, "
        f"{outcome['seconds']:.0f} s",
        f"searches               {len(outcome['searches']):>14,}",
    ]
    show(found._asdict(), as_json, "\n".join(lines), rows)


def bit_range(text: str) -> tuple[float, float]:
    """Two budgets from "2.25-5", or one twice from "3".

    Raises:
        ValueError: it is not one of the two.
    """
    parts = text.split("-")
    try:
        ends = [float(part) for part in parts]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2) or not 0 < ends[0] <= ends[-1] < float("inf"):
        raise ValueError(f"--budgets {text} is not a range of bits; allowed: such as 2.25-5")
    return ends[0], ends[-1]


def bit_list(text: str) -> list[float]:
    """Budgets from "2.5,3,4".

    Raises:
        ValueError: a part is not a positive number.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < bits < float("inf") for bits in found):
        raise ValueError(f"--bits {text} are not numbers; allowed: such as 2.5,3,4")
    return found
