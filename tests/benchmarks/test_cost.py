from __future__ import annotations

import multiprocessing
from pathlib import Path
from unittest.mock import MagicMock

import pandas as pd
import pytest
import torch

from benchmarks import cost


def small_times() -> pd.DataFrame:
    """What `cost.take_times` would give, of made-up times."""
    rows = [
        {"axis": axis, "value": value, "work": work, "ms": value, "floor_ms": value / 2, "slogdet_ms": value / 3}
        for axis, values in cost.AXES.items()
        for value in values
        for work in cost.LOOKS
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("axis", "value", "found"),
    [("features", 64, (64, 4, 256)), ("layers", 2, (784, 2, 256)), ("batch", 1, (784, 4, 1))],
)
def test_one_size_varies(axis: str, value: int, found: tuple[int, int, int]) -> None:
    assert cost.sizes(axis, value) == found


@pytest.mark.parametrize("threads", [1, 2])
def test_each_round_times_everything_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cost, "clock", lambda call, device: (2.0, 3.0))
    times = pd.DataFrame(cost.take_times("features", 16, rounds=2))
    assert (times.groupby(["work", "round"]).size() == 1).all()
    assert len(times) == 2 * len(cost.LOOKS)
    own, clock = (3.0, "cpu") if threads == 1 else (2.0, "wall")
    assert set(times["ms"]) == set(times["slogdet_ms"]) == {own}
    assert set(times["clock"]) == {clock}
    assert times.groupby("work")["floor_ms"].first().to_dict() == {
        "step": 12 * own, "log_prob": 4 * own, "sample": 4 * own
    }  # fmt: skip


@pytest.mark.parametrize(("reversible", "kept"), [(False, 2), (True, 1)])
def test_memory_stands_beside_the_least_there_can_be(
    reversible: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process has the peak of the one that starts it, so that none can be weighed from within a test.
    pool = MagicMock()
    pool.__enter__.return_value.apply.return_value = 50.0
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: MagicMock(Pool=lambda _: pool))
    found = cost.weigh("layers", 2, reversible=reversible)
    parameters = 2 * (784**2 + 784)
    assert found["mib"] == 50.0
    assert found["floor_mib"] == pytest.approx(4 * (4 * parameters + kept * 3 * 256 * 784) / 2**20)
    pool.__enter__.return_value.apply.assert_called_once_with(cost._grown_mib, (784, 2, 256, reversible))


def test_the_pictures_are_drawn_and_always_the_same(tmp_path: Path) -> None:
    weights = pd.DataFrame(
        {"axis": axis, "value": value, "reversible": reversible, "mib": 50 + value, "floor_mib": 40 + value}
        for axis in ("batch", "layers")
        for value in cost.AXES[axis]
        for reversible in (False, True)
    )
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        folder.mkdir()
        cost.draw(small_times(), weights, folder)
    names = {"cost-features", "cost-batch", "cost-layers", "cost-memory-batch", "cost-memory-layers"}
    for folder in folders:
        assert {path.stem for path in folder.glob("*.svg")} == names
    for name in names:
        first, second = ((folder / f"{name}.svg").read_bytes() for folder in folders)
        assert first == second
        assert b"at least" in first
