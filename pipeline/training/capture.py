"""Functions of a batch as CUDA graphs, which a GPU replays without waiting for Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

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
        self._generators, self._pool, self._stream = generators, torch.cuda.graph_pool_handle(), _stream()

    def warm_up(self, function: Function, batch: Tensor) -> None:
        """Call a function a few times on the stream of the captures, and wait for it; no generator advances."""
        states = [generator.get_state() for generator in self._generators]
        own_state = torch.cuda.get_rng_state()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                function(batch)
        torch.cuda.synchronize()
        torch.cuda.set_rng_state(own_state)
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def capture(self, function: Function, batch: Tensor) -> Function:
        """A function as a graph, after its `warm_up`; call it with batches of the shape of ``batch``.

        The function reads no value from the device, and changes in place what lasts from call to call.

        Args:
            function: The function.
            batch: The tensor from which the graph reads each batch, which is copied there.

        Raises:
            RuntimeError: If an operation of the function cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                function(batch)
        except RuntimeError as error:
            # To end a capture that an error has broken raises another, which does not tell of the first.
            first: BaseException = error
            while first.__context__ is not None:
                first = first.__context__
            raise first from None

        def replay(rows: Tensor) -> None:
            batch.copy_(rows)
            graph.replay()

        return replay


@cache
def _stream() -> torch.cuda.Stream:
    """The stream of all captures; each new one would allocate workspaces that are never freed."""
    return torch.cuda.Stream()


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
