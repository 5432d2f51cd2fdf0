"""Forward and backward as CUDA graphs: a small model spends its time on launches, not on sums."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.linear import LoraLinear, frozen_copies
from coalora_lib.training.step import PassResult, TrainingPass

#: Runs before the capture, in which libraries choose their kernels and allocate their workspaces.
#: PyTorch's examples take 3; each costs a pass per shape of batch.
WARM_UP = 2
#: Captured batches are padded to a multiple of this many tokens: few shapes to capture, and what
#: 16-bit matrix products want (NVIDIA, "Matrix multiplication background": 16 bytes).
PADDING = 8


class _Graph(NamedTuple):
    """A captured pass and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: dict[str, Tensor]
    target: Tensor | None
    result: PassResult

    def replay(self, batch: dict[str, Tensor], target: Tensor | None) -> PassResult:
        """Of tensors of the captured shapes; the result is in tensors of its own."""
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor)
        if self.target is not None and target is not None:
            self.target.copy_(target)
        self.graph.replay()
        loss, logits = self.result
        return PassResult(loss.clone(), None if logits is None else logits.clone())


class CapturedPass:
    """A pass over a batch, captured once for each shape of its inputs and then replayed.

    The pass must not wait for the GPU. What is replayed reads and writes the memory it was captured
    with. Inputs are copied there; gradients are added to what ``grad`` of the parameters holds, so
    they are to be zeroed, not dropped; and the weights must stay where they are, see
    :meth:`~coalora_lib.adapter.layers.AdaptedLayers.static_memory`.
    """

    def __init__(self, run: TrainingPass, parameters: Iterable[nn.Parameter]) -> None:
        self._run = run
        self._parameters = list(parameters)
        self._graphs: dict[tuple, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: autograd remembers the stream that a parameter's gradient came on.
        self._stream = torch.cuda.Stream()
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def __call__(
        self, batch: dict[str, Tensor], target: Tensor | None, keep_logits: bool
    ) -> PassResult:
        inputs = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        learned = None if target is None else (target.shape, target.dtype)
        key = inputs, learned, keep_logits
        if key not in self._graphs:
            self._graphs[key] = self._capture(batch, target, keep_logits)
        return self._graphs[key].replay(batch, target)

    def _capture(
        self, batch: dict[str, Tensor], target: Tensor | None, keep_logits: bool
    ) -> _Graph:
        batch = {name: tensor.clone() for name, tensor in batch.items()}
        target = None if target is None else target.clone()
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        before = [gradient.clone() for gradient in gradients]
        random_state = torch.cuda.get_rng_state()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                self._run(batch, target, keep_logits)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = self._run(batch, target, keep_logits)
        # A capture computes nothing; the warm-up did, and drew random numbers.
        torch._foreach_copy_(gradients, before)
        torch.cuda.set_rng_state(random_state)
        return _Graph(graph, batch, target, result)


@contextmanager
def ready_for_capture(model: nn.Module) -> Iterator[None]:
    """While it lasts, passes of the model may be captured: weights stay where they are.

    A CoaLora's configurations are copied into the same memory; of a PEFT model it is the frozen
    weights.
    """
    if isinstance(model, CoaLora):
        fixed = model.layers.static_memory()
    else:
        fixed = frozen_copies(each for each in model.modules() if isinstance(each, LoraLinear))
    # Not cuDNN's attention: on a few dozen tokens a call of it takes 70 us.
    with fixed, sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield
