"""Checkpoints: all that a run needs to go on as if it had not been stopped.

    step-00001200-1/         after 1,200 steps and one search
        state.safetensors    trained parameters, the optimizer's moments, random states, and what
                             each search saw
        state.json           where the run stands; its plan; losses; the set of configurations;
                             checksums of both files

A checkpoint is a folder that appears whole; the two newest are kept.
"""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from coalora_lib.adapter.saving import load_parameters
from coalora_lib.configuration import from_indices
from coalora_lib.files import atomic_folder, seal, sha256_of, unseal
from coalora_lib.search import Round
from coalora_lib.training.alternation import to_flat

if TYPE_CHECKING:
    from coalora_lib.training.loop import Trainer

STATE, TENSORS = "state.json", "state.safetensors"
KEPT = 2


def save(trainer: Trainer, folder: Path) -> None:
    """Write a checkpoint of a run; the main process does, the others wait."""
    random_states = trainer.random_states()
    if trainer.accelerator.is_main_process:
        _write(trainer, folder, random_states)
    trainer.accelerator.wait_for_everyone()


def resume(trainer: Trainer, folder: Path) -> None:
    """Bring a fresh run to where its newest whole checkpoint stands.

    A checkpoint that was cut short or altered is named in a warning and put aside, and the one
    before it is used.

    Raises:
        ValueError: the checkpoints are of another run.
    """
    for path in reversed(found(folder)):
        try:
            state, tensors = _read(path)
        except (ValueError, OSError) as error:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            warnings.warn(
                f"checkpoint {path} is not used: {error}; it was renamed to {aside.name}",
                stacklevel=4,
            )
            continue
        _refuse_another_run(path, state["run"], trainer.about)
        _restore(trainer, path, state, tensors)
        return


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}-\d+", path.name))


def _write(trainer: Trainer, folder: Path, random_states: list[dict[str, Tensor]]) -> None:
    tensors = {f"parameter.{name}": p for name, p in trainer.parameters.items()}
    moments = trainer.optimizer.state_dict()["state"]
    for (name, _), moment in zip(trainer.parameters.items(), moments.values(), strict=True):
        tensors |= {f"optimizer.{kind}.{name}": value for kind, value in moment.items()}
    tensors["draws"] = trainer.generator.get_state()
    for process, states in enumerate(random_states):
        tensors |= {f"random.{process}.{device}": state for device, state in states.items()}
    if trainer.configurations is not None:
        tensors["set"] = to_flat(trainer.configurations)
    proposed = []
    for number, each in enumerate(trainer.rounds):
        values = vars(each).copy()
        proposed.append(values.pop("proposed"))
        tensors |= {f"round.{number}.{name}": value for name, value in values.items()}
    path = folder / f"step-{trainer.step:08d}-{len(trainer.rounds)}"
    with atomic_folder(path, STATE) as partial:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, partial / TENSORS)
        state = {
            "run": trainer.about,
            "step": trainer.step,
            "losses": trainer.losses,
            "schedule": trainer.schedule.state_dict(),
            "learning_rates": [group["lr"] for group in trainer.optimizer.param_groups],
            "epoch": trainer.batches.epoch,
            "position": trainer.batches.position,
            "proposed": proposed,
            "tensors_sha256": sha256_of(partial / TENSORS),
        }
        (partial / STATE).write_text(seal(state))
    for old in found(folder)[:-KEPT]:
        shutil.rmtree(old)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = unseal((path / STATE).read_text())
    if sha256_of(path / TENSORS) != state["tensors_sha256"]:
        raise ValueError(f"{TENSORS} was altered: its sha256 is not the recorded one")
    return state, load_file(path / TENSORS)


def _refuse_another_run(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    ours = unseal(seal(ours))  # as it looks when it was written: tuples are lists
    for name in ours:
        if theirs.get(name) != ours[name]:
            differing = name
            if isinstance(ours[name], dict) and isinstance(theirs.get(name), dict):
                keys = sorted(ours[name].keys() | theirs[name].keys())
                key = next(k for k in keys if ours[name].get(k) != theirs[name].get(k))
                differing = f"{name}, {key}: {theirs[name].get(key)} there, {ours[name].get(key)}"
            raise ValueError(
                f"checkpoint {path} is of another run ({differing}); give another folder, or "
                "remove it to start anew"
            )


def _restore(
    trainer: Trainer, path: Path, state: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    load_parameters(trainer.model, _under(tensors, "parameter."), str(path / TENSORS))
    kinds = ("step", "exp_avg", "exp_avg_sq")
    optimizer = trainer.optimizer.state_dict()
    optimizer["state"] = {
        number: {kind: tensors[f"optimizer.{kind}.{name}"] for kind in kinds}
        for number, name in enumerate(trainer.parameters)
    }
    for group, rate in zip(optimizer["param_groups"], state["learning_rates"], strict=True):
        group["lr"] = rate
    trainer.optimizer.load_state_dict(optimizer)
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.generator.set_state(tensors["draws"])
    random = _under(tensors, f"random.{trainer.accelerator.process_index}.")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"])
    trainer.step, trainer.losses = state["step"], state["losses"]
    trainer.batches.seek(state["epoch"], state["position"])
    trainer.rounds = [
        Round(**_under(tensors, f"round.{number}."), proposed=proposed)
        for number, proposed in enumerate(state["proposed"])
    ]
    if "set" in tensors:
        trainer.configurations = [from_indices(row) for row in tensors["set"]]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
