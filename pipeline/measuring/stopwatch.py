"""The stopwatch of this room and of `benchmarks/`: times of calls whose device may compute after they return.

Every time is read from the wall clock between two waits for the device, not from its events: a caller also waits while
the CPU starts the work.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

MINIMUM_ROUNDS = 5
Call = Callable[[], object]


class Milliseconds(NamedTuple):
    """Wall and CPU time in milliseconds."""

    wall: float
    cpu: float


def synchronize(device: torch.device | str | None) -> None:
    """Wait until a GPU has finished; no effect on a CPU or without a device."""
    if device is not None and torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def clock(call: Call, device: torch.device | str | None, calls: int = 1) -> Milliseconds:
    """The time of a call, the mean of several in a row.

    The device is synchronised before both readings; with None, nothing waits for a GPU to finish.
    """
    synchronize(device)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Milliseconds(1000 * wall / calls, 1000 * cpu / calls)


def rounds(most: int, seconds: float, least: int = MINIMUM_ROUNDS) -> Iterator[int]:
    """Count at most ``most`` rounds; after ``least``, none starts once ``seconds`` have passed."""
    begin = time.perf_counter()
    for number in range(most):
        if number >= least and time.perf_counter() - begin > seconds:
            break
        yield number


def sample_times(
    call: Call, device: torch.device, warmup: int, most: int, seconds: float, least: int = MINIMUM_ROUNDS
) -> list[float]:
    """Wall milliseconds of each call after ``warmup`` calls, with garbage collection off; `rounds` says how many."""
    if warmup:
        clock(call, device, warmup)
    gc.disable()
    try:
        return [clock(call, device).wall for _ in rounds(most, seconds, least)]
    finally:
        gc.enable()
