"""The cost of an LU-Net: sizes, rounds, lower bounds of time and memory, and reproducible figures."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from unittest.mock import MagicMock

import pandas as pd
import pytest
import torch

from benchmarks import cost


def small_times() -> pd.DataFrame:
    """A table as `cost.take_times` gives, with made-up times."""
    rows = [
        {"axis": axis, "value": value, "work": work, "ms": value, "floor_ms": value / 2, "slogdet_ms": value / 3}
        for axis, values in cost.AXES.items()
        for value in values
        for work in cost.STYLES
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("axis", "value", "expected"),
    [("features", 64, (64, 4, 256)), ("layers", 2, (784, 2, 256)), ("batch", 1, (784, 4, 1))],
)
def test_one_size_varies(axis: str, value: int, expected: tuple[int, int, int]) -> None:
    assert cost.sizes(axis, value) == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_each_round_times_everything_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cost, "clock", lambda call, device: (2.0, 3.0))
    times = pd.DataFrame(cost.take_times("features", 16, rounds=2))
    assert (times.groupby(["work", "round"]).size() == 1).all()
    assert len(times) == 2 * len(cost.STYLES)
    milliseconds, clock = (3.0, "cpu") if threads == 1 else (2.0, "wall")
    assert set(times["ms"]) == set(times["slogdet_ms"]) == {milliseconds}
    assert set(times["clock"]) == {clock}
    assert times.groupby("work")["floor_ms"].first().to_dict() == {
        "step": 12 * milliseconds, "log_prob": 4 * milliseconds, "sample": 4 * milliseconds
    }  # fmt: skip


@pytest.mark.parametrize(("reversible", "stored_layers"), [(False, 2), (True, 1)])
def test_memory_comes_with_its_lower_bound(
    reversible: bool, stored_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process inherits the peak of the process that starts it, so a test cannot measure a real one.
    pool = MagicMock()
    pool.__enter__.return_value.apply.return_value = 50.0
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: MagicMock(Pool=lambda _: pool))
    row = cost.measure_memory("layers", 2, reversible=reversible)
    parameters = 2 * (784**2 + 784)
    assert row["mib"] == 50.0
    assert row["floor_mib"] == pytest.approx(4 * (4 * parameters + stored_layers * 3 * 256 * 784) / 2**20)
    pool.__enter__.return_value.apply.assert_called_once_with(cost._memory_growth_mib, (784, 2, 256, reversible))


def test_the_figures_are_drawn_and_reproducible(tmp_path: Path) -> None:
    memory = pd.DataFrame(
        {"axis": axis, "value": value, "reversible": reversible, "mib": 50 + value, "floor_mib": 40 + value}
        for axis in ("batch", "layers")
        for value in cost.AXES[axis]
        for reversible in (False, True)
    )
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        folder.mkdir()
        cost.draw(small_times(), memory, folder)
    names = {"cost-features", "cost-batch", "cost-layers", "cost-memory-batch", "cost-memory-layers"}
    for folder in folders:
        assert {path.stem for path in folder.glob("*.svg")} == names
    for name in names:
        first, second = ((folder / f"{name}.svg").read_bytes() for folder in folders)
        assert first == second
        assert b"at least" in first
