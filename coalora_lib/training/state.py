"""The optimizer of a run, its data's digest, and what several processes of it share."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from coalora_lib.kinds import Examples
from coalora_lib.training.plan import TrainingPlan

Result = TypeVar("Result")


def new_optimizer(
    parameters: Mapping[str, nn.Parameter], plan: TrainingPlan
) -> tuple[torch.optim.AdamW, LRScheduler]:
    """AdamW over the parameters, and the schedule of its learning rate."""
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
    )
    warm_up = round(plan.warmup * plan.steps)
    return optimizer, get_scheduler(plan.schedule, optimizer, warm_up, plan.steps)


def data_digest(examples: Examples, flat: Tensor | None) -> str:
    """sha256 over all that the examples hold and the first training set, (n, fields * layers)."""
    digest = hashlib.sha256()
    for name in sorted(examples[0]):
        joined = torch.cat([example[name].reshape(-1) for example in examples])
        digest.update(f"{name} {joined.dtype}".encode())
        digest.update(joined.contiguous().view(torch.uint8).numpy().data)
    if flat is not None:
        digest.update(flat.flatten().numpy().data)
    return digest.hexdigest()


def on_main_process(accelerator: Accelerator, call: Callable[[], Result]) -> Result:
    """What ``call`` gives on the main process, on all processes; all wait for it.

    Where it raises, the others raise RuntimeError.
    """
    if accelerator.num_processes == 1:
        return call()
    shared: list[Any] = [None, None]
    error = None
    if accelerator.is_main_process:
        try:
            shared[0] = call()
        except Exception as raised:
            error, shared[1] = raised, f"{type(raised).__name__}: {raised}"
    broadcast_object_list(shared)
    if error is not None:
        raise error
    if shared[1] is not None:
        raise RuntimeError(f"the main process failed with {shared[1]}")
    return shared[0]


def gathered_random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    """torch's random states of all processes: "<process>.cpu", and "<process>.cuda" on GPUs."""
    state = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    states = gather_object([state]) if accelerator.num_processes > 1 else [state]
    return {f"{i}.{name}": tensor for i, each in enumerate(states) for name, tensor in each.items()}


def set_random_states(
    accelerator: Accelerator, draws: torch.Generator, stored: Mapping[str, Any]
) -> None:
    """Set this process's of :func:`gathered_random_states`, and the generator of draws.

    ``stored`` has them as ``random`` and ``draws``. ValueError if one is not a generator's state.
    """
    own, states = f"{accelerator.process_index}.", stored["random"]
    try:
        draws.set_state(stored["draws"])
        torch.set_rng_state(states[f"{own}cpu"])
        if f"{own}cuda" in states:
            torch.cuda.set_rng_state(states[f"{own}cuda"])
    except RuntimeError as error:
        raise ValueError(f"a state of random numbers is damaged: {error}") from None
