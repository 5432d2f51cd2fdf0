"""The command that writes an adapter for one device."""

# What does the work is imported in the command: `--help` is to answer at once.

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coalora_lib.cli.shared import AsJson, positive, show

if TYPE_CHECKING:
    from coalora_lib.gguf import Options
    from coalora_lib.recipes.using import Adapted

Model = Annotated[
    str,
    typer.Argument(
        help="Folder that `coalora train` wrote; with --no-training also a saved CoaLora, or "
        "any model of transformers: a folder, a name on the hub, or all-MiniLM-L6-v2."
    ),
]
Out = Annotated[Path, typer.Option(help="New or empty folder, or an earlier export.")]
Bits = Annotated[float | None, positive("Mean bits of the layers")]
DeviceFile = Annotated[
    Path | None, typer.Option(help="YAML: bits, bytes, size, allowed fields, fixed layers.")
]
Form = Annotated[str, typer.Option("--format", help="peft, or gguf: files for llama.cpp.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weights beside the adapter: base_model, packed or none; none not with codes that "
        "were chosen for texts (--rounding).  [default: base_model]"
    ),
]
Embedding = Annotated[
    str | None,
    typer.Option(help="GGUF type of word embeddings and output layer.  [default: F16]"),
]
Pooling = Annotated[
    str | None,
    typer.Option(help="Pooling of an encoder in GGUF, mean or cls.  [default: mean]"),
]
NoTraining = Annotated[
    bool,
    typer.Option("--no-training", help="Fit the adapter to texts; the options below are for this."),
]
Texts = Annotated[
    str | None,
    typer.Option(help=".txt with a text on each line, .csv, .tsv, .jsonl, .parquet."),
]
Column = Annotated[
    str | None, typer.Option(help="Column with the texts, in a table.  [default: text]")
]
Count = Annotated[int | None, typer.Option(help="Texts to fit on, at most.  [default: 256]", min=1)]
Rank = Annotated[int | None, typer.Option(help="Rank of the fitted terms.  [default: 8]", min=1)]
Polish = Annotated[
    int | None, typer.Option(help="Gradient steps after the fit.  [default: 0]", min=0)
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        help="Tokens, at most what the model takes; longer texts are cut.  [default: 128]", min=2
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of the draw of texts.  [default: 0]", min=0, max=2**32 - 1),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Type of the weights, for a model without adapter.  [default: float32]"),
]
Space = Annotated[
    str | None,
    typer.Option(help="What its layers may be quantized to.  [default: nf, or gguf]"),
]
Allocation = Annotated[
    str | None,
    typer.Option(
        help="Give bits by the error of weights, or by sensitivity: what the error of each "
        "layer does to the model, measured on 64 of the texts.  [default: error]"
    ),
]
Rounding = Annotated[
    str | None,
    typer.Option(
        help="Of weights to codes: compensated, so that their errors make up for each other on "
        "the texts, or nearest. The bytes are the same. In the space gguf it is always nearest.  "
        "[default: compensated]"
    ),
]

#: What is said of a fit.
FIT = (
    "\n{measure} to the unquantized model: {before:.4f} before, {after:.4f} after, on "
    "{texts[measured]} texts beside the {texts[fitted]} fitted to; {seconds:.1f} s"
)


def adapt(
    model: Model,
    out: Out,
    bits: Bits = None,
    device: DeviceFile = None,
    form: Form = "peft",
    weights: Weights = None,
    embedding: Embedding = None,
    pooling: Pooling = None,
    no_training: NoTraining = False,
    texts: Texts = None,
    column: Column = None,
    count: Count = None,
    rank: Rank = None,
    polish: Polish = None,
    max_length: MaxLength = None,
    seed: Seed = None,
    dtype: Dtype = None,
    space: Space = None,
    allocation: Allocation = None,
    rounding: Rounding = None,
    as_json: AsJson = False,
) -> None:
    """Write the adapter for one device, as plain PEFT or as GGUF, with the quantized model.

    With --no-training the adapter needs no run. It is fitted to some hundred texts: codes, a
    low-rank term and a bias for each layer, in closed form.
    """
    options = {
        "column": column, "count": count, "rank": rank, "polish": polish, "seed": seed,
        "max_length": max_length, "dtype": dtype, "space": space, "allocation": allocation,
        "rounding": rounding,
    }  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    _refuse_misfits(no_training, texts, options)
    if (bits is None) == (device is None):
        raise ValueError("give either --bits or --device")
    written = _written(form, weights, embedding=embedding, pooling=pooling)
    found, fit = _adapted(model, out, texts, (bits, device), *written, options)
    files = "".join(f", {name} {size / 1e6:.1f} MB" for name, size in found.files.items())
    show(
        {"folder": str(found.folder), "bits": found.bits, "bytes": found.nbytes}
        | ({"files": found.files} if found.files else {})
        | fit,
        as_json,
        f"{found.folder}: {found.bits:.3f} bits per parameter, {found.nbytes / 1e6:.1f} MB in "
        f"{len(found.layers)} layers{files}{(FIT if fit else '').format_map(fit)}",
        [],
    )


def _refuse_misfits(no_training: bool, texts: str | None, options: Mapping[str, Any]) -> None:
    """A ValueError if texts are missing for a fit, or something is given that only a fit takes."""
    if no_training and texts is None:
        raise ValueError("--no-training needs --texts: a file of texts to fit the adapter to")
    if not no_training and (texts is not None or options):
        given = "texts" if texts is not None else next(iter(options)).replace("_", "-")
        raise ValueError(f"--{given} is for --no-training only")


def _adapted(
    model: str,
    out: Path,
    texts: str | None,
    device: tuple[float | None, Path | None],
    weights: str | None,
    gguf: "Options | None",
    options: Mapping[str, Any],
) -> "tuple[Adapted, dict[str, Any]]":
    """What was written for bits or a device, and what is said of a fit to texts."""
    from coalora_lib.recipes import Device, RunFolder, adapt_to_texts, read_device
    from coalora_lib.recipes import adapt as adapt_run

    bits, file = device
    described = Device(bits=bits) if file is None else read_device(file)
    if texts is None:
        return adapt_run(RunFolder.open(model), out, described, weights, gguf), {}
    found, *rest = adapt_to_texts(model, texts, out, described, weights, gguf, **options)
    return found, dict(zip(("measure", "before", "after", "texts", "seconds"), rest, strict=True))


def _written(
    form: str, weights: str | None, **options: str | None
) -> "tuple[str | None, Options | None]":
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
