"""Training on texts of one's own, over configurations from few bits to many."""

import math
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from coalora_lib.adapter import CoaLora, adaptable_layers
from coalora_lib.allocation import allocate, error_table, spread
from coalora_lib.files import atomic_folder
from coalora_lib.kinds import Examples, get_kind
from coalora_lib.recipes.folder import (
    CHECKPOINTS,
    MODEL,
    TOKENIZER,
    Outcome,
    RunFolder,
    Settings,
    digests,
)
from coalora_lib.recipes.texts import (
    class_names,
    held_out,
    kind_of_texts,
    longest,
    prepared,
    read_texts,
)
from coalora_lib.search import SearchPlan
from coalora_lib.spaces import Configuration, get_space, random_at_bits
from coalora_lib.tasks.models import Pretrained, load_pretrained, model_config
from coalora_lib.training import History, TrainingPlan, mean_inputs, train
from coalora_lib.training.alternation import Scorer
from coalora_lib.training.evaluation import evaluate_each

#: Examples that mean inputs are measured on, and that a search scores on, at most.
MEASURED, SCORED = 512, 256
#: Bits that the trained model is measured at: so many from the fewest to the most.
MEASURED_BUDGETS = 4
#: Steps between checkpoints.
CHECKPOINT_EVERY = 50
#: What a search proposes, and how far its walks go, as the book's standard profile has it.
SEARCH: dict[str, Any] = {"restarts": 5, "max_steps": 30, "proposals": 20}


def train_run(path: str | Path, settings: Settings, scorer: Scorer | None = None) -> RunFolder:
    """Train, or go on with, the run that a folder is for; a finished one is left as it is.

    All processes of ``accelerate launch`` call it together. ``scorer`` is as of
    :func:`coalora_lib.training.train`.

    Raises:
        ValueError, OSError: settings, data and model do not fit, or the folder is another run's.
        FloatingPointError: a loss is not finite.
    """
    run = RunFolder.begin(path, settings)
    if run.described.outcome is not None:
        return run
    began, settings = time.perf_counter(), run.settings
    split, validation, kind = _read(settings)
    classes = class_names(split)
    torch.manual_seed(settings.seed)
    model, tokenizer = _load(settings, kind, split)
    make, most = get_kind(kind).examples, longest(settings.max_length, tokenizer, model)
    examples, others = (make(prepared(part, kind), tokenizer, most) for part in (split, validation))
    attached, configurations = _attach(model, settings, examples)
    if PartialState().is_main_process:
        run.write()  # only now: what was asked for can be done
    history = _train(run, attached, examples, configurations, scorer)
    budgets = spread(*settings.budgets, MEASURED_BUDGETS)
    metrics = measured(attached, others, budgets, kind)
    if not PartialState().is_main_process:
        return run
    with atomic_folder(run.path / TOKENIZER, "tokenizer_config.json", TOKENIZER_FILES) as folder:
        tokenizer.save_pretrained(folder)
        run.described.tokenizer_sha256 = digests(folder)
    attached.set_configuration(None)  # none is the run's own, and without one it loads faster
    attached.save_pretrained(run.path / MODEL)
    run.described.outcome = Outcome(
        classes=classes,
        kind=kind,
        metrics=metrics,
        examples={"training": len(examples), "validation": len(others)},
        losses=[float(f"{loss:.6g}") for loss in history.losses],
        searches=[
            {"scored": len(each.losses), "proposed": each.proposed, "kept": len(each.kept)}
            for each in history.rounds
        ],
        seconds=round(time.perf_counter() - began, 1),
    )
    run.write()
    shutil.rmtree(run.path / CHECKPOINTS, ignore_errors=True)
    return run


def measured(
    model: CoaLora, examples: Examples, budgets: Sequence[float], kind: str
) -> list[dict[str, float]]:
    """Bits and metrics by name at some mean bits each."""
    found = evaluate_each(model, examples, budgets, kind=kind)
    # One after another: the bits are those of the configuration that is set just then.
    return [{"bits": model.bits or 0.0} | evaluation.metrics for evaluation in found]


#: What tokenizers write.
TOKENIZER_FILES = (
    "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "chat_template.jinja", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model", "bpe.codes",
)  # fmt: skip


def _read(settings: Settings) -> tuple[Dataset, Dataset, str]:
    """Rows to train on and rows to validate on, and the kind of task."""
    split = read_texts(settings.data, settings)
    kind = kind_of_texts(settings, split)
    names = class_names(split)
    trained = list((model_config(settings.model).id2label or {}).values())
    if names is not None and names != trained and sorted(names) == sorted(trained):
        split = read_texts(settings.data, settings, trained)  # as the model's head numbers them
    if settings.validation is None:
        return *held_out(split, settings.seed), kind
    label = split.features.get("label")
    return split, read_texts(settings.validation, settings, label), kind


def _load(settings: Settings, kind: str, split: Dataset) -> Pretrained:
    """The model for these classes; a head that was trained for as many is kept.

    Raises:
        ValueError: there is one class only.
    """
    names = class_names(split)
    options: dict[str, Any] = {}
    if names is not None:
        if len(names) < 2:
            raise ValueError(f"the labels have one class, {names[0]!r}; two at least are needed")
        numbered = dict(enumerate(names))
        options = {
            "num_labels": len(names),
            "id2label": numbered,
            "label2id": {name: number for number, name in numbered.items()},
        }
    elif kind == "regression":
        options = {"num_labels": 1}
    if kind == "several-labels":
        options["problem_type"] = "multi_label_classification"
    elif kind == "regression":
        options["problem_type"] = "regression"
    dtype = getattr(torch, settings.dtype)
    return load_pretrained(settings.model, kind, dtype, **options)


def _attach(
    base: PreTrainedModel, settings: Settings, examples: Examples
) -> tuple[CoaLora, list[Configuration]]:
    """The model with fresh adapters, and the configurations it trains over."""
    space = get_space(settings.space)
    layers = adaptable_layers(base)
    weights = {name: base.get_submodule(name).weight.detach() for name in layers}
    errors = error_table(weights, space, sample=True)
    shapes = [tuple(weight.shape) for weight in weights.values()]
    fewest = min(min(shape) for shape in shapes)
    # Mean inputs are over the tokens of one sequence, and a decoder has another.
    corrected = not base.config.is_encoder_decoder
    means = mean_inputs(base, layers, examples[:MEASURED]) if corrected else None
    model = CoaLora.attach(
        base,
        settings.rank,
        settings.alpha,
        "svd" if settings.rank <= fewest else "zero",
        space=space,
        errors=errors,
        mean_inputs=means,
        bias_correction=corrected,
        output_bias=True,
        error_features=True,
    )
    drawn = settings.configurations // 2
    generator = torch.Generator().manual_seed(settings.seed)
    chosen: list[Configuration] = [
        allocate(errors, shapes, budget, space).configs
        for budget in spread(*settings.budgets, settings.configurations - drawn)
    ]
    chosen += [
        random_at_bits(shapes, bits, generator, space) for bits in spread(*settings.budgets, drawn)
    ]
    return model, chosen


def _train(
    run: RunFolder,
    model: CoaLora,
    examples: Examples,
    configurations: Sequence[Configuration],
    scorer: Scorer | None,
) -> History:
    """With checkpoints in the run's folder, from the newest of which it goes on."""
    settings = run.settings
    scoring = None
    if settings.searches:
        count = min(SCORED, len(examples) // 5)
        scoring, examples = examples[:count], examples[count:]
    if len(examples) < settings.batch_size:
        warnings.warn(
            f"{len(examples)} examples are fewer than batch_size={settings.batch_size}; each step "
            "takes all of them",
            stacklevel=2,
        )
    batch_size = min(settings.batch_size, len(examples))
    plan = TrainingPlan(
        steps=max(1, math.ceil(settings.epochs * len(examples) / batch_size)),
        batch_size=batch_size,
        configurations_per_step=1,
        learning_rate=settings.learning_rate,
        cuda_graphs=True,
        seed=settings.seed,
    )
    search = SearchPlan(rounds=settings.searches + 1, **SEARCH) if settings.searches else None
    return train(
        model,
        examples,
        configurations,
        plan,
        search=search,
        scoring=scoring,
        checkpoints=run.path / CHECKPOINTS,
        checkpoint_every=CHECKPOINT_EVERY,
        scorer=scorer,
    )
