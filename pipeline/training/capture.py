"""Functions of a batch as CUDA graphs, which a GPU replays without waiting for Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# Calls before a capture; they allocate what only first calls allocate, and choose algorithms.
WARM_UP = 3
Function = Callable[[Tensor], object]


class Graphs:
    """The CUDA graphs of functions that never run at the same time, in one pool of memory.

    Args:
        generators: All generators that the functions draw from, besides torch's own; each replay advances them.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators, self._pool = generators, torch.cuda.graph_pool_handle()

    def warm_up(self, function: Function, batch: Tensor) -> None:
        """Call a function a few times, on a stream of its own as a capture needs it; the generators do not advance."""
        states = [generator.get_state() for generator in self._generators]
        stream = torch.cuda.Stream(batch.device)
        stream.wait_stream(torch.cuda.current_stream(batch.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function(batch)
        torch.cuda.current_stream(batch.device).wait_stream(stream)
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def capture(self, function: Function, batch: Tensor) -> Function:
        """A function as a graph, after its `warm_up`; call it with batches of the shape of ``batch``.

        The function reads no value from the device, and changes in place what lasts from call to call.

        Args:
            function: The function.
            batch: The tensor from which the graph reads each batch, which is copied there.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self._pool):
            function(batch)

        def replay(rows: Tensor) -> None:
            batch.copy_(rows)
            graph.replay()

        return replay


@contextmanager
def fastest_convolutions(*, wanted: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape in the block and keep the fastest, unless they must not vary."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted and torch.get_deterministic_debug_mode() == 0
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def runs_graphs(device: torch.device) -> bool:
    """Whether functions on a device can be captured, and networks compiled for it without a compiler of C++."""
    return device.type == "cuda"
