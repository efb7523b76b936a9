"""A stand-in for CUDA graphs on a CPU: the operations of a call, done again with the same tensors and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.training.capture import WARM_UP, Function

READS = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default")


class Recording(TorchDispatchMode):
    """Records operations with the very tensors and numbers that they are given, as the capture of a CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(function) in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and tensor.data_ptr() not in self._made | {*self._before}:
                self._before[tensor.data_ptr()] = (tensor.detach(), tensor.detach().clone())
        outputs = function(*args, **(kwargs or {}))
        self._made |= {tensor.data_ptr() for tensor in tree_leaves(outputs) if isinstance(tensor, Tensor)}
        self._made -= {*self._before}
        self._calls.append((function, args, kwargs or {}, outputs))
        return outputs

    @torch.no_grad()
    def undo(self) -> None:
        """Restore all tensors that the operations did not make: a capture only records."""
        for tensor, value in self._before.values():
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        """Do all operations again; each writes its results where they were."""
        for function, args, kwargs, outputs in self._calls:
            for old, new in zip(tree_leaves(outputs), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class ReplayedGraphs:
    """`pipeline.training.capture.Graphs` with recordings in place of CUDA graphs."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def warm_up(self, function: Function, batch: Tensor) -> None:
        with self._unmoved():
            for _ in range(WARM_UP):
                function(batch)

    def capture(self, function: Function, batch: Tensor) -> Function:
        with self._unmoved(), Recording() as recording:
            function(batch)
        recording.undo()

        def replay(rows: Tensor) -> None:
            batch.copy_(rows)
            recording.replay()

        return replay

    @contextmanager
    def _unmoved(self) -> Iterator[None]:
        states = [generator.get_state() for generator in self._generators]
        yield
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)
