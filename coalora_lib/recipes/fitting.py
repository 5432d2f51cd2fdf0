"""A configuration of any model fitted to texts, without training, and written for a device."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from coalora_lib.adapter import CoaLora, OrderedFit
from coalora_lib.adapter.export import check_export
from coalora_lib.adapter.passes import hooks
from coalora_lib.adapter.saving import DESCRIPTION
from coalora_lib.allocation import Constraints, allocate, layer_sensitivities
from coalora_lib.gguf import Options
from coalora_lib.kinds import Examples
from coalora_lib.kinds.kind import as_examples
from coalora_lib.packaged import locate
from coalora_lib.recipes.device import Device
from coalora_lib.recipes.distance import Distance, has_head
from coalora_lib.recipes.folder import ABOUT, RunFolder
from coalora_lib.recipes.texts import drawn, longest, plain_texts
from coalora_lib.recipes.using import Adapted, write_adapted
from coalora_lib.spaces import Configuration
from coalora_lib.tasks.models import load_as_saved
from coalora_lib.training.batches import collate
from coalora_lib.training.evaluation import pad_token_of
from coalora_lib.training.polish import polish
from coalora_lib.validation import describe

#: Texts that sensitivities are measured on, at most: for each layer there are three measurements.
PROBED = 64
#: Settings of how a model without an adapter is taken up.
OF_PLAIN_MODELS = ("dtype", "space")


class FitSettings(BaseModel):
    """How a configuration is fitted to texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(8, ge=1)  #: of what is fitted; a layer with a shorter side gets that
    count: int = Field(256, ge=1)  #: texts to fit on, at most
    column: str = "text"  #: with the texts, of a table
    seed: int = Field(0, ge=0, lt=2**32)  #: of the draw of texts
    polish: int = Field(0, ge=0)  #: gradient steps after the fit
    max_length: int = Field(128, ge=2)  #: in tokens, at most what the model takes; texts are cut
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  #: of a model without an adapter
    space: str | None = None  #: of a model without an adapter; "nf", or "gguf" for GGUF
    #: What bits are allocated by: the squared error of weights, or also what an error in each layer
    #: does to the model, measured on some of the texts, see :func:`.layer_sensitivities`.
    allocation: Literal["error", "sensitivity"] = "error"
    #: Of weights to codes: so that their errors make up for each other on the texts, see
    #: :mod:`coalora_lib.quantization.compensation`, where the space knows how; or each to the
    #: nearest. The bytes are the same.
    rounding: Literal["compensated", "nearest"] = "compensated"


class Fitted(NamedTuple):
    """What was fitted to texts and written for a device."""

    adapted: Adapted
    measure: str  #: of the distance to the unquantized model, see :class:`Distance`
    before: float  #: that distance without what was fitted, on texts not fitted on
    after: float  #: the same with it
    texts: dict[str, int]  #: how many were fitted on, and measured on
    seconds: float  #: of the fit, and of the steps after it


def adapt_to_texts(
    model: str | Path,
    texts: str | Path | Sequence[str],
    out: str | Path,
    device: Device,
    weights: str | None = "base_model",
    gguf: Options | None = None,
    **options: Any,
) -> Fitted:
    """Write an adapter that was fitted to texts for a device, without training.

    The device's configuration is allocated, and :class:`~coalora_lib.adapter.OrderedFit` finds
    codes, a low-rank term and a bias for every layer, which bring the quantized model near the
    unquantized one. The distance is measured on other texts, as the divergence of the two outputs:
    the kind's, see :class:`Distance`.

    Args:
        model: name on the hub, a folder, or the packaged model; or the folder of a run, or of a
            saved :class:`~coalora_lib.adapter.CoaLora`: with a head the aim is the model as it was
            trained, and the term takes its adapter's place; else its adapter stays beside it.
        texts: a file with one text a line (.txt), a table, or the texts themselves; each distinct
            text counts once.
        out: new, empty, or an earlier export, which is replaced.
        device: its memory, and the choices that it can run.
        weights: as :meth:`~coalora_lib.adapter.CoaLora.export_peft_adapter` takes it.
        gguf: write GGUF files for llama.cpp so, instead of plain PEFT.
        options: see :class:`FitSettings`.

    Raises:
        ValueError: an option is not known or allowed; there are fewer than two texts; the device
            cannot hold the model; the model's layers cannot be fitted in order; or llama.cpp has no
            such model.
        OSError: the model or the texts are not found, or ``out`` holds something else.
    """
    settings, out = _settings(options), Path(out).expanduser()
    if gguf is None:
        check_export(out, weights)
        if weights is None and settings.rounding == "compensated":
            raise ValueError(
                "weights=None would lose the codes that rounding='compensated' chooses; allowed: "
                "weights='packed', weights='base_model', or rounding='nearest'"
            )
    given = plain_texts(texts, settings.column) if isinstance(texts, str | Path) else list(texts)
    parts = drawn(given, settings.count, settings.seed)
    space = settings.space or ("nf" if gguf is None else "gguf")
    adapted, tokenizer = _open(model, settings, space)
    if gguf is not None:
        adapted.check_gguf(out, tokenizer, **vars(gguf))
    examples, others = (_examples(part, tokenizer, adapted, settings) for part in parts)
    constraints = device.constraints(adapted, gguf, tokenizer)
    configuration = _allocated(adapted, constraints, examples[:PROBED], settings)
    measured = Distance(adapted, others)
    adapted.layers.fitted.pop(tuple(configuration), None)  # of a model that was fitted and saved
    before = measured(configuration)
    began = time.perf_counter()
    _fit(adapted, configuration, examples, settings)
    seconds = time.perf_counter() - began
    after = measured(configuration)
    return Fitted(
        write_adapted(adapted, tokenizer, out, configuration, weights, gguf),
        measured.name,
        before,
        after,
        {"fitted": len(examples), "measured": len(others)},
        round(seconds, 2),
    )


def _settings(options: dict[str, Any]) -> FitSettings:
    try:
        return FitSettings(**options)
    except ValidationError as error:
        raise ValueError(describe(error)) from None


def _open(
    model: str | Path, settings: FitSettings, space: str
) -> tuple[CoaLora, PreTrainedTokenizerBase]:
    """The model with its adapter, or with one that does nothing yet, and its tokenizer."""
    path = Path(model).expanduser()
    if plain := not ((path / ABOUT).is_file() or (path / DESCRIPTION).is_file()):
        base, tokenizer = load_as_saved(str(model), getattr(torch, settings.dtype))
        # The LoRA that is trained elsewhere does nothing here, and is not exported.
        found = CoaLora.attach(base, 1, 1, adjuster="none", space=space, heads=())
    elif (path / ABOUT).is_file():
        run = RunFolder.open(path)
        found, tokenizer = run.load_model(), run.load_tokenizer()
    else:
        found = CoaLora.from_pretrained(path)
        folder = locate(found.name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for name in OF_PLAIN_MODELS:
        if not plain and name in settings.model_fields_set:
            raise ValueError(f"{name}= is for a model without an adapter, and {path} has one")
    if found.config.is_encoder_decoder:
        raise ValueError(
            f"{path} is an encoder with a decoder, whose layers see two sequences: it cannot be "
            "fitted in order"
        )
    return found.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _examples(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    model: CoaLora,
    settings: FitSettings,
) -> Examples:
    """Texts as a model's inputs, cut to what it takes; ValueError if no text has a token."""
    most = longest(settings.max_length, tokenizer, model)
    cut = {"truncation": True, "max_length": most, "return_attention_mask": True}
    encoded = tokenizer(list(texts), **cut)
    names = ("input_ids", "attention_mask")  # token types are those by default
    examples = as_examples({name: encoded[name] for name in names}, len(texts))
    if not (found := [each for each in examples if len(each["input_ids"])]):
        raise ValueError(f"the tokenizer finds no tokens in {texts[0]!r:.80}")
    return found


def _allocated(
    model: CoaLora, constraints: Constraints, examples: Examples, settings: FitSettings
) -> Configuration:
    """The device's configuration."""
    least = model.resolve(constraints)  # before it takes long: what cannot be held is refused
    if settings.allocation == "error":
        return least
    shapes, space = model.shapes, model.space
    losses = Distance(model, examples).each
    weights = layer_sensitivities(model.errors, shapes, losses, space)
    table, given = model.errors * weights[:, None].to(model.errors), vars(constraints)
    return allocate(table, shapes, space=space, names=model.layer_names, **given).configs


def _fit(
    model: CoaLora, configuration: Configuration, examples: Examples, settings: FitSettings
) -> None:
    batch = collate(examples, pad_token_of(model))
    with _progress(model, "fitting"):
        fit = OrderedFit(
            model,
            batch,
            compensated=settings.rounding == "compensated",
            trained=has_head(model),
            seed=settings.seed,
        )
        fit.fit(configuration, settings.rank)
    if settings.polish:
        polish(fit, configuration, examples, settings.polish, seed=settings.seed)


@contextmanager
def _progress(model: CoaLora, what: str) -> Iterator[None]:
    """In terminals, how many layers were called: some passes over all of them."""
    base = model.get_base_model()
    with tqdm(desc=what, unit="layer", disable=None, leave=False) as bar:
        each = dict.fromkeys(model.layer_names, lambda *_: bar.update() and None)
        with hooks(base, each, before=False):
            yield
