"""Commands for a model of one's own: train, evaluate, adapt, report."""

# What does the work is imported in the commands: `--help` is to answer at once.

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from coalora_lib.cli.shared import AsJson

RunPath = Annotated[Path, typer.Argument(help="Folder that `coalora train` wrote.")]


def train(
    data: Annotated[str, typer.Option(help="Table of texts: .csv, .tsv, .jsonl or .parquet.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run continues.")],
    text: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    label: Annotated[str | None, typer.Option(help="Column with the labels.")] = None,
    second: Annotated[
        str | None, typer.Option(help="Column with second texts, or with texts to write.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Name on the hub, a folder, or the packaged model.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    dtype: Annotated[
        str, typer.Option(help="Type of the weights: float32, bfloat16 or float64.")
    ] = "float32",
    task: Annotated[
        str | None,
        typer.Option(help="Kind of task, such as causal-lm; by default from the labels."),
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Table to validate on; by default a tenth of the rows.")
    ] = None,
    budgets: Annotated[str, typer.Option(help="Mean bits, from fewest to most.")] = "2.25-5",
    configurations: Annotated[int, typer.Option(help="Configurations to train on.", min=1)] = 50,
    space: Annotated[str, typer.Option(help="What layers may be quantized to.")] = "nf",
    rank: Annotated[int, typer.Option(help="Rank of LoRA.", min=1)] = 16,
    alpha: Annotated[float, typer.Option(help="LoRA is scaled by alpha / rank.", min=0)] = 16,
    epochs: Annotated[float, typer.Option(help="Passes over the texts.", min=0.001)] = 3,
    batch_size: Annotated[int, typer.Option(help="Texts in a step.", min=1)] = 16,
    learning_rate: Annotated[float, typer.Option(help="Learning rate at its peak.", min=0)] = 1e-3,
    max_length: Annotated[int, typer.Option(help="Tokens; longer texts are cut.", min=2)] = 128,
    searches: Annotated[int, typer.Option(help="Searches during the training.", min=0)] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Address of a Dask scheduler, whose workers score what searches propose."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a quantized model once, for every bit budget.

    Called again with the same options, a stopped training continues. On several processes:
    `accelerate launch -m coalora_lib train ...`.
    """
    from coalora_lib.recipes import Settings, train_run

    settings = Settings.of(
        model=model,
        dtype=dtype,
        data=_absolute(data),
        text=text,
        label=label,
        second=second,
        kind=task,
        validation=None if validation is None else _absolute(validation),
        budgets=bit_range(budgets),
        configurations=configurations,
        space=space,
        rank=rank,
        alpha=alpha,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_length=max_length,
        searches=searches,
        seed=seed,
    )
    if scheduler is None:
        run = train_run(out, settings)
    else:
        from coalora_lib.batch import cluster
        from coalora_lib.batch.scoring import WorkerScorer

        with cluster.connected(scheduler) as client:
            run = train_run(out, settings, WorkerScorer(client))
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


def evaluate(
    run: RunPath,
    data: Annotated[str, typer.Option(help="Table with the columns that the run was trained on.")],
    bits: Annotated[str, typer.Option(help="Mean bits, with commas between.")] = "2.5,3,4",
    as_json: AsJson = False,
) -> None:
    """Measure a run's model at some bits."""
    from coalora_lib.recipes import RunFolder, evaluate_run

    found = evaluate_run(RunFolder.open(run), bit_list(bits), _absolute(data))
    show({"run": str(run), "metrics": found}, as_json, f"{run} on {data}:", found)


def adapt(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder that `coalora train` wrote; with --no-training also a saved CoaLora, or "
            "any model of transformers: a folder, a name on the hub, or all-MiniLM-L6-v2."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New or empty folder, or an earlier export.")],
    bits: Annotated[float | None, typer.Option(help="Mean bits of the layers.", min=0)] = None,
    device: Annotated[
        Path | None, typer.Option(help="YAML: bits, bytes, size, allowed fields, fixed layers.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="peft, or gguf: files for llama.cpp.")
    ] = "peft",
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights beside the adapter: base_model, packed or none.  [default: base_model]"
        ),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(help="GGUF type of word embeddings and output layer.  [default: F16]"),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(help="Pooling of an encoder in GGUF, mean or cls.  [default: mean]"),
    ] = None,
    no_training: Annotated[
        bool,
        typer.Option(
            "--no-training", help="Fit the adapter to texts; the options below are for this."
        ),
    ] = False,
    texts: Annotated[
        str | None,
        typer.Option(help=".txt with a text on each line, .csv, .tsv, .jsonl, .parquet."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column with the texts, in a table.  [default: text]")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Texts to fit on, at most.  [default: 256]", min=1)
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the fitted terms.  [default: 8]", min=1)
    ] = None,
    polish: Annotated[
        int | None, typer.Option(help="Gradient steps after the fit.  [default: 0]", min=0)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens; longer texts are cut.  [default: 128]", min=2)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the draw of texts.  [default: 0]", min=0)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Type of the weights, for a model without adapter.  [default: float32]"),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(help="What its layers may be quantized to.  [default: nf, or gguf]"),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(
            help="Give bits by the error of weights, or by sensitivity: what the error of each "
            "layer does to the model, measured on 64 of the texts.  [default: error]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the adapter for one device, as plain PEFT or as GGUF, with the quantized model.

    With --no-training the adapter needs no run. It is fitted to some hundred texts: a low-rank term
    and a bias for each layer, in closed form.
    """
    from coalora_lib.recipes import Device, RunFolder, adapt_to_texts, read_device
    from coalora_lib.recipes import adapt as adapt_run

    options = {
        "column": column, "count": count, "rank": rank, "polish": polish, "seed": seed,
        "max_length": max_length, "dtype": dtype, "space": space, "allocation": allocation,
    }  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    if no_training and texts is None:
        raise ValueError("--no-training needs --texts: a file of texts to fit the adapter to")
    if not no_training and (texts is not None or options):
        given = "texts" if texts is not None else next(iter(options)).replace("_", "-")
        raise ValueError(f"--{given} is for --no-training only")
    if (bits is None) == (device is None):
        raise ValueError("give either --bits or --device")
    beside, gguf = _written(form, weights, embedding=embedding, pooling=pooling)
    described = Device(bits=bits) if device is None else read_device(device)
    if texts is None:
        found, fit, said = adapt_run(RunFolder.open(model), out, described, beside, gguf), {}, ""
    else:
        found, *rest = adapt_to_texts(model, texts, out, described, beside, gguf, **options)
        fit = dict(zip(("measure", "before", "after", "texts", "seconds"), rest, strict=True))
        said = (
            "\n{measure} to the unquantized model: {before:.4f} before, {after:.4f} after, on "
            "{texts[measured]} texts beside the {texts[fitted]} fitted to; {seconds:.1f} s"
        ).format_map(fit)
    files = "".join(f", {name} {size / 1e6:.1f} MB" for name, size in found.files.items())
    show(
        {"folder": str(found.folder), "bits": found.bits, "bytes": found.nbytes}
        | ({"files": found.files} if found.files else {})
        | fit,
        as_json,
        f"{found.folder}: {found.bits:.3f} bits per parameter, {found.nbytes / 1e6:.1f} MB in "
        f"{len(found.layers)} layers{files}{said}",
        [],
    )


def _written(form: str, weights: str | None, **options: str | None) -> tuple[str | None, Any]:
    """What is written beside PEFT's adapter, and how GGUF is, of which the other is None.

    Raises:
        ValueError: a value is not known, or is for the other format.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if form not in (allowed := ("peft", "gguf")):
        raise ValueError(f"--format {form} is not known; allowed: {', '.join(allowed)}")
    if form == "gguf":
        from coalora_lib.gguf import Options

        if weights is not None:
            raise ValueError("--weights is for --format peft only")
        return None, Options(**given)
    if given:
        raise ValueError(f"--{next(iter(given))} is for --format gguf only")
    if weights not in (None, *(known := ("base_model", "packed", "none"))):
        raise ValueError(f"--weights {weights} is not known; allowed: {', '.join(known)}")
    return None if weights == "none" else weights or "base_model", None


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


def show(
    content: Mapping[str, Any], as_json: bool, heading: str, rows: Sequence[Mapping[str, float]]
) -> None:
    """Print as JSON, or a heading and a table."""
    if as_json:
        typer.echo(json.dumps(content, indent=1, default=str))
        return
    typer.echo(heading)
    if rows:
        typer.echo("".join(f"{name:>16}" for name in rows[0]))
    for row in rows:
        typer.echo("".join(f"{_number(name, value):>16}" for name, value in row.items()))


def _number(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "bytes" else f"{value:.4f}"


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
