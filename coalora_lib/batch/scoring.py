"""The configurations of a search, scored on Dask's workers, as many at a time as there are."""

import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future, KilledWorker

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.saving import load_parameters, trained_parameters
from coalora_lib.batch.worker import describe_worker, differences, facts
from coalora_lib.kinds import Examples, TaskKind
from coalora_lib.spaces import Configuration
from coalora_lib.training.alternation import losses

#: A worker of several threads has one copy of the model.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Sent:
    """What goes to workers in one piece: of a list or a dictionary Dask would scatter the parts."""

    content: Any


class WorkerScorer:
    """For :func:`coalora_lib.training.train`, as its ``scorer``.

    The model and the examples are sent once; at each search the trained parameters are sent again.
    Where there are no workers, or they are lost, the losses are measured here.

    Args:
        client: of a scheduler, see :mod:`.cluster`.

    Raises:
        ValueError: a worker's code or packages are not those here.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._held: Future | None = None
        ours = facts(())
        for address, theirs in client.run(describe_worker, ()).items():
            if differ := differences(ours, theirs):
                raise ValueError(f"worker {address} differs from this process: {differ}")

    def __call__(
        self,
        model: CoaLora,
        configurations: Sequence[Configuration],
        scoring: Examples,
        kind: TaskKind | None = None,
    ) -> Iterable[float]:
        """The losses of configurations on the examples, in their order."""
        workers = len(self._client.nthreads())
        if not workers:
            return losses(model, configurations, scoring, kind)
        parts = [configurations[number::workers] for number in range(workers)]
        try:
            found = self._on_workers(model, [part for part in parts if part], scoring, kind)
        except (KilledWorker, CancelledError, OSError) as error:
            warnings.warn(
                f"workers were lost, so this process scores instead: {error}", stacklevel=2
            )
            self._held = None
            return losses(model, configurations, scoring, kind)
        return [found[i % workers][i // workers] for i in range(len(configurations))]

    def _on_workers(
        self,
        model: CoaLora,
        parts: Sequence[Sequence[Configuration]],
        scoring: Examples,
        kind: TaskKind | None,
    ) -> list[list[float]]:
        client = self._client
        if self._held is None:
            held = Sent((deepcopy(model).cpu(), list(scoring), kind))  # all have a processor
            self._held = client.scatter(held, broadcast=True, hash=False)
        trained = {n: p.detach().cpu().clone() for n, p in trained_parameters(model).items()}
        parameters = client.scatter(Sent(trained), broadcast=True, hash=False)
        futures = [
            client.submit(_losses, part, self._held, parameters, pure=False) for part in parts
        ]
        return client.gather(futures)


def _losses(configurations: Sequence[Configuration], held: Sent, parameters: Sent) -> list[float]:
    """On a worker, whose copy of the model is the one of the search before."""
    model, scoring, kind = held.content
    with _ONE_AT_A_TIME:
        load_parameters(model, parameters.content, "the driver's parameters")
        return list(losses(model, configurations, scoring, kind))
