"""The comparison with other libraries: its rounds, its limits, its summary and its figure."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks.contestants import FEATURES, Contestant
from pipeline.measuring.stopwatch import Milliseconds


def settings(**changes: object) -> argparse.Namespace:
    values = {
        "batches": [1, 2], "image_batches": [1], "works": ["step", "log_prob", "sample"], "rounds": 5, "seconds": 60,
        "patience": 60,
    }  # fmt: skip
    return argparse.Namespace(**values | changes)


def samples(times: dict[str, list[float]], threads: int = 2) -> pd.DataFrame:
    """Samples of one work at one batch, with CPU times ten times the wall times."""
    rows = [
        {
            "work": "step",
            "batch": 1,
            "model": model,
            "wall_ms": time,
            "cpu_ms": 10 * time,
            "threads": threads,
            "device": "cpu",
        }
        for model, milliseconds in times.items()
        for time in milliseconds
    ]
    return pd.DataFrame(rows)


@pytest.mark.usefixtures("two_small_contestants")
def test_every_round_measures_every_model_once() -> None:
    table = pd.DataFrame(benchmarks.measure(settings(), torch.device("cpu")))
    assert (table.groupby(["work", "batch", "model", "round"]).size() == 1).all()
    assert len(table) == 3 * 2 * 2 * 5
    assert (table[["wall_ms", "cpu_ms"]] > 0).all(axis=None)
    assert list(table["model"][:4]) == ["8 linear layers", "lunet"] * 2


@pytest.mark.usefixtures("two_small_contestants")
def test_a_model_that_takes_too_long_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[object] = []

    def clock(call: object, device: torch.device) -> Milliseconds:
        calls.append(call)
        return Milliseconds(20_000.0, 20_000.0)

    monkeypatch.setattr(benchmarks, "clock", clock)
    rows = list(benchmarks.measure(settings(patience=10, works=["step"], batches=[2, 1]), torch.device("cpu")))
    assert rows == []
    assert len(calls) == len(set(calls)) == 2  # once each: not a second time, and not at the larger batch
    assert "lunet, step at batch 1: 20.0 s a call, left out from here on" in "".join(capsys.readouterr())


@pytest.mark.parametrize("work", ["step", "log_prob", "sample"])
def test_a_work_does_what_it_says(work: str) -> None:
    done: list[str] = []
    model = torch.nn.Linear(FEATURES, 1)

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        done.append(f"{'train' if model.training else 'eval'} {len(x)}")
        return model(x)[:, 0]

    before = model.weight.detach().clone()
    contestant = Contestant(model, log_prob, lambda n: done.append(f"sample {n}"))
    benchmarks.make_call(contestant, work, torch.randn(7, FEATURES))()
    assert done == [{"step": "train 7", "log_prob": "eval 7", "sample": "sample 7"}[work]]
    assert torch.equal(before, model.weight) == (work != "step")


def test_ratios_are_to_the_first_model() -> None:
    table = benchmarks.summarise(samples({"floor": [2.0] * 6, "fast": [0.5, 1.0, 1.0, 1.5, 1.0, 3.0]}))
    assert list(table["ratio"]) == [1.0, 0.5]
    assert list(table["ms"]) == [2.0, 1.0]
    assert list(table["ms_25"]) == [2.0, 1.0]
    assert list(table["ms_75"]) == [2.0, 1.375]
    assert set(table["clock"]) == {"wall"}


def test_one_thread_is_judged_by_cpu_time() -> None:
    table = benchmarks.summarise(samples({"floor": [2.0] * 6}, threads=1))
    assert list(table["ms"]) == [20.0]
    assert set(table["clock"]) == {"cpu"}


def test_the_figure_contains_every_model_and_is_reproducible(tmp_path: Path) -> None:
    table = benchmarks.summarise(samples({"8 linear layers": [2.0] * 6, "lunet": [1.0] * 6, "zuko MAF": [90.0] * 6}))
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    for path in (first, second):
        benchmarks.draw(table, path)
    drawn = first.read_text()
    assert all(f">{name}</text>" in drawn for name in (*table["model"], "step, batch 1"))
    assert drawn == second.read_text()
