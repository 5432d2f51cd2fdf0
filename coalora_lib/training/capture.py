"""Forward and backward as CUDA graphs: a small model spends its time on launches, not on sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

#: Runs before the capture, in which libraries choose their kernels and allocate their workspaces.
WARM_UP = 2


class CapturedPass:
    """A pass over a batch, captured once for each shape of batch and then replayed.

    What is replayed reads and writes the memory it was captured with. Inputs are copied there;
    gradients are added to what ``grad`` of the parameters holds, so they are to be zeroed, not
    dropped; and the weights must stay where they are, see
    :meth:`~coalora_lib.adapter.CoaLora.weights_in_place`.

    Args:
        run: (batch) to tensors, such as loss and logits; it adds to the gradients and does not
            wait for the GPU.
        parameters: whose gradients it adds to.
    """

    def __init__(
        self,
        run: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
        parameters: Iterable[nn.Parameter],
    ) -> None:
        self._run = run
        self._parameters = list(parameters)
        self._graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, dict, tuple[Tensor, ...]]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: autograd remembers the stream that a parameter's gradient came on.
        self._stream = torch.cuda.Stream()
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def __call__(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """What the pass returns, in tensors of their own."""
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(batch)
        graph, inputs, outputs = self._graphs[shape]
        for name, tensor in batch.items():
            inputs[name].copy_(tensor)
        graph.replay()
        return tuple(output.clone() for output in outputs)

    def _capture(
        self, batch: dict[str, Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, dict, tuple[Tensor, ...]]:
        inputs = {name: tensor.clone() for name, tensor in batch.items()}
        gradients = [parameter.grad.clone() for parameter in self._parameters]
        random_state = torch.cuda.get_rng_state()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                self._run(inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            outputs = self._run(inputs)
        # A capture computes nothing; the warm-up did, and drew random numbers.
        torch._foreach_copy_([parameter.grad for parameter in self._parameters], gradients)
        torch.cuda.set_rng_state(random_state)
        return graph, inputs, outputs
