"""A stand-in for CUDA graphs on a CPU: the operations of a call, done again with the same tensors and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.training import capture

# Operations that read a value from a GPU or copy one to it, which no capture permits.
FORBIDDEN = {
    "aten._local_scalar_dense.default", "aten._unique2.default", "aten.equal.default", "aten.is_nonzero.default",
    "aten.lift_fresh.default", "aten.masked_select.default", "aten.nonzero.default",
}  # fmt: skip


def place(tensor: Tensor) -> int:
    """The address of a tensor's memory."""
    return tensor.untyped_storage().data_ptr()


class Recording(TorchDispatchMode):
    """Records operations with the very tensors and numbers that they are given, as the capture of a CUDA graph does."""

    def __init__(self, generators: list[torch.Generator]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generators = generators
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs))
        seeds = {generator.initial_seed() for generator in self._generators}  # a generator arrives as another object
        if any(isinstance(leaf, torch.Generator) and leaf.initial_seed() not in seeds for leaf in leaves):
            raise RuntimeError("a generator is not registered with the graph")
        has_mask = any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in leaves)
        if str(function) in FORBIDDEN or (has_mask and str(function).startswith("aten.index")):
            raise RuntimeError("operation not permitted when stream is capturing")
        for leaf in leaves:
            if isinstance(leaf, Tensor) and place(leaf) not in self._made | self._before.keys():
                self._before[place(leaf)] = leaf.untyped_storage(), leaf.untyped_storage().clone()
        outputs = function(*args, **(kwargs or {}))
        made = {place(leaf) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)}
        self._made |= made - self._before.keys()
        self._calls.append((function, args, kwargs or {}, outputs))
        return outputs

    def undo(self) -> None:
        """Restore all memory that the operations did not make: a capture only records."""
        for storage, value in self._before.values():
            storage.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        """Do all operations again; each writes its results where they were."""
        for function, args, kwargs, outputs in self._calls:
            for old, new in zip(tree_leaves(outputs), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class ReplayedGraph:
    """`torch.cuda.CUDAGraph`, with a recording in place of a graph."""

    def __init__(self) -> None:
        self._generators: list[torch.Generator] = []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self._generators.append(generator)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Record the block; as on a GPU, an error in it is followed by another at its end."""
        states = [generator.get_state() for generator in self._generators]
        self._recording = Recording(self._generators)
        try:
            with self._recording:
                yield
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904 - as CUDA does
        finally:
            self._recording.undo()
            for generator, state in zip(self._generators, states, strict=True):
                generator.set_state(state)

    def replay(self) -> None:
        self._recording.replay()


class Stream:
    """`torch.cuda.Stream`, without any effect."""

    def wait_stream(self, _: Stream) -> None:
        pass


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `pipeline.training.capture` capture on the CPU."""
    monkeypatch.setattr(capture, "runs_graphs", lambda _: True)
    monkeypatch.setattr(capture, "_stream", Stream)
    functions = {
        "CUDAGraph": ReplayedGraph,
        "graph": lambda graph, **_: graph.capturing(),
        "graph_pool_handle": lambda: (0, 0),
        "current_stream": Stream,
        "stream": lambda _: nullcontext(),
        "synchronize": lambda: None,
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }
    for name, function in functions.items():
        monkeypatch.setattr(torch.cuda, name, function)
