"""The stopwatch: what is inside the time of a call, how many calls are timed, and garbage collection."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator

import pytest
import torch
from small_trainings import CPU

from pipeline.measuring.stopwatch import clock, rounds, sample_times


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order, with a wall clock that advances by one second at each reading and a CPU clock by two."""
    log: list[str] = []

    def advance(name: str, readings: Iterator[int]) -> float:
        log.append(name)
        return next(readings)

    wall, cpu = itertools.count(), itertools.count(0, 2)
    monkeypatch.setattr("pipeline.measuring.stopwatch.time.perf_counter", lambda: advance("wall", wall))
    monkeypatch.setattr("pipeline.measuring.stopwatch.time.process_time", lambda: advance("cpu", cpu))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(f"synchronise {device}"))
    return log


def test_a_gpu_has_finished_before_each_reading(events: list[str]) -> None:
    time = clock(lambda: events.append("call"), torch.device("cuda"), 2)
    wait = "synchronise cuda"
    assert events == [wait, "cpu", "wall", "call", "call", wait, "wall", "cpu"]
    assert time == (500, 1000)


@pytest.mark.parametrize("device", [CPU, None])
def test_nothing_waits_without_a_gpu(events: list[str], device: torch.device | None) -> None:
    assert clock(lambda: events.append("call"), device) == (1000, 2000)
    assert events == ["cpu", "wall", "call", "wall", "cpu"]


@pytest.mark.usefixtures("events")
@pytest.mark.parametrize(("most", "seconds", "expected"), [(30, 8.5, 13), (7, 100, 7), (30, 0, 5), (3, 0, 3)])
def test_rounds_end_with_the_time_but_not_before_the_minimum(most: int, seconds: float, expected: int) -> None:
    # The clock, which is read once for each round after the minimum of five, advances by one second.
    assert len(list(rounds(most, seconds))) == expected


@pytest.mark.usefixtures("events")
def test_the_minimum_of_rounds_can_be_lower() -> None:
    assert len(list(rounds(30, 0, least=2))) == 2


def test_warm_up_is_not_sampled_and_collects_garbage(events: list[str]) -> None:
    collecting: list[bool] = []
    samples = sample_times(lambda: collecting.append(gc.isenabled()), CPU, 3, 6, 1e6)
    assert samples == [1000] * 6
    assert collecting == 3 * [True] + 6 * [False]
    assert gc.isenabled()


def test_garbage_is_collected_again_after_an_error() -> None:
    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        sample_times(fail, CPU, 0, 6, 1.0)
    assert gc.isenabled()
