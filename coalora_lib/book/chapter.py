"""What chapters call: how they begin, how figures and tables look, what numbers are made from."""

from __future__ import annotations

import ast
import logging
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
import transformers

from coalora_lib.experiments.profiles import CHAPTER_DATASETS, CHAPTER_PROFILES, PROFILES, Run
from coalora_lib.records.environment import SHOWN, versions
from coalora_lib.tasks import TaskSplits, checkpoint_checksum, data_checksum

if TYPE_CHECKING:
    from IPython.display import Markdown

#: One colour an idea, used in every chapter (Okabe and Ito's palette, told apart by all eyes).
COLOURS = {
    "CoA-LoRA": "#0072B2",
    "Shared-LoRA": "#E69F00",
    "QLoRA": "#009E73",
    "LQ-LoRA": "#56B4E9",
    "LoRA by bit width": "#8A5A44",
    "front": "#D55E00",
    "proposed": "#CC79A7",
    "muted": "#8A8F98",
}
#: Of a chapter's adapters: the width of BERT-large, above which no layer's product is thin.
MOST_RANK = 1024
#: What papermill puts on top of the cell that carries the parameters it was given.
INJECTED_MARK = "# Parameters\n"


def begin(namespace: Mapping[str, Any], *names: str) -> Run:
    """Check a chapter's parameters and start it: torch is seeded and uses half of the cores.

    Args:
        namespace: the notebook's ``globals()``.
        names: the parameters the chapter has, of those in its cell tagged ``parameters``. A
            ``rank`` takes the place of the profile's.

    Raises:
        ValueError: papermill was given a name that the chapter does not have, or a value that is
            not allowed; the allowed ones are listed.
    """
    for name in _injected_names(namespace.get("In", [])):
        if name not in names:
            raise ValueError(f"this chapter has no parameter {name!r}; allowed: {', '.join(names)}")
    given = {name: namespace[name] for name in names}
    profile = PROFILES[_one_of("profile", given["profile"], CHAPTER_PROFILES)]
    if "rank" in given:
        profile = replace(profile, rank=_integer("rank", given["rank"], 1, MOST_RANK))
    run = Run(
        profile=profile,
        seed=_integer("seed", given["seed"], 0, 2**32 - 1),
        dataset=_one_of("dataset", given.get("dataset", "embedded"), CHAPTER_DATASETS),
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    _use_style()
    # A thread that waits for a busy core spins: with a thread per core, a chapter beside other
    # work takes many times its processor time.
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    torch.set_num_threads(min(torch.get_num_threads(), max(1, cores // 2)))
    torch.manual_seed(run.seed)
    return run


def _injected_names(history: list[str]) -> list[str]:
    """The names assigned by papermill's cell, read off the notebook's history of inputs."""
    cells = (ast.parse(source) for source in history if source.startswith(INJECTED_MARK))
    assigned = (node for cell in cells for node in cell.body if isinstance(node, ast.Assign))
    return [ast.unparse(target) for node in assigned for target in node.targets]


def _one_of(name: str, value: Any, allowed) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; allowed: {', '.join(allowed)}")
    return value


def _integer(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}={value!r} is not known; allowed: integers from {least} to {most}")
    return value


def numbers(name: str, value: str | float) -> list[float]:
    """The numbers of a parameter such as ``"2.5, 3, 4"``; papermill gives a single one as such.

    Raises:
        ValueError: one is not a positive number, or there is none.
    """
    try:
        found = [float(each) for each in str(value).split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < each < math.inf for each in found):
        raise ValueError(f"{name}={value!r} is not known; allowed: numbers such as '2.5, 3, 4'")
    return found


def provenance(run: Run, splits: TaskSplits | None = None) -> str:
    """Data (if a chapter has any), model, profile, seed, device and versions."""
    parts = []
    if splits is not None:
        name = "generated phrases (synthetic)" if run.dataset == "embedded" else run.dataset
        parts.append(f"Data: {name}, sha256 {data_checksum(splits)[:12]}")
    checksum = checkpoint_checksum(run.profile.model)[:12]
    parts.append(f"Model: {run.profile.model}, sha256 {checksum}")
    parts.append(f"Profile: {run.profile.name}, seed {run.seed}")
    device = "GPU" if torch.cuda.is_available() else "CPU"
    packages = ", ".join(f"{name} {versions()[name]}" for name in SHOWN)
    parts.append(f"Device: {device}; {packages}")
    return "\n".join(parts)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> Markdown:
    """A Markdown table that a notebook displays: the first columns left, the others right.

    Numbers are to be formatted before, rounded as they shall be read.
    """
    from IPython.display import Markdown  # here, so that scripts need no notebook packages

    lines = [columns, [":--"] * left + ["--:"] * (len(columns) - left), *rows]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


def _use_style() -> None:
    """Set matplotlib's defaults for the book."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E4E6EA",
            "grid.linewidth": 0.8,
            "axes.edgecolor": "#5B616B",
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": "viridis",
        }
    )
