from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest

from pipeline.core import load
from pipeline.core.load import OtherCores, busy_seconds, own_seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def readings(*values: float) -> Iterator[float]:
        return iter(values)

    for name, values in (("busy_seconds", readings(100, 125)), ("own_seconds", readings(3, 8))):
        monkeypatch.setattr(load, name, lambda values=values: next(values))
    times = readings(50, 60)
    monkeypatch.setattr(load, "time", SimpleNamespace(monotonic=lambda: next(times)))


@pytest.mark.parametrize(("more", "cores"), [(0, 2.0), (15, 0.5), (25, 0.0)])
def test_what_the_stage_itself_has_used_does_not_count(clocks: None, more: float, cores: float) -> None:
    assert OtherCores().mean(more) == cores


def test_idle_and_stolen_time_and_the_time_of_guests_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"user": 10, "nice": 2, "system": 3, "idle": 99, "iowait": 99, "steal": 99, "guest": 5, "guest_nice": 1}
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(_asdict=lambda: fields))
    assert busy_seconds() == 15


def test_children_that_have_ended_are_one_s_own() -> None:
    before = own_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    assert own_seconds() > before
