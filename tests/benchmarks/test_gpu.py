"""The GPU benchmark as a command: its parts, time limit, failures and summary."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_setting import SETTING

from benchmarks import gpu
from benchmarks.gpu_works import FIGURES, QUICK, Key, Row, Setting


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    gpu.main()


def test_without_a_gpu_it_says_so_and_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^no CUDA GPU is here, so there is nothing to measure; ") as caught:
        run(monkeypatch, "--out", str(tmp_path / "out"))
    assert "\n" not in str(caught.value.code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "lunet steps"], "there is no 'lunet steps'; there are: lunet step"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_mistaken_arguments_are_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--device", "cpu", *arguments)
    assert message in capsys.readouterr().err


def test_a_rehearsal_writes_samples_and_summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "--device", "cpu", "--quick", "--parts", "evaluation", "--out", str(tmp_path))
    with (tmp_path / "samples.csv").open() as file:
        samples = list(csv.DictReader(file))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(samples) == 4 * QUICK["rounds"]
    assert [(row["figure"], row["precision"], row["n"]) for row in summary["figures"]] == [
        (f"lunet {work}", precision, QUICK["rounds"])
        for work in ("density", "sampling")
        for precision in ("float32", "tf32")
    ]
    first = [
        float(row["value"]) for row in samples if row["figure"] == "lunet density" and row["precision"] == "float32"
    ]
    assert summary["figures"][0]["median"] == pytest.approx(np.median(first), rel=1e-4)
    assert summary["environment"]["torch"] == torch.__version__
    assert summary["failed"] == []


def test_keys_beyond_the_time_limit_are_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "--device", "cpu", "--quick", "--time-limit", "1", "--out", str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["figures"] == summary["likelihood"] == []
    assert len(summary["failed"]) == sum(len(part.keys) for part in gpu.parts(SETTING).values())
    assert {row["message"] for row in summary["failed"]} == {"not measured: the time limit"}


def test_a_process_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "STARTING_SECONDS", 0)
    rows = gpu.run_part(SETTING, "evaluation", 0.2)
    assert [(row["kind"], row["message"]) for row in rows] == 4 * [("failed", "not measured: the time limit")]


def test_a_process_that_fails_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = gpu.run_part(Setting("cpu", data=tmp_path), "training", 60)
    assert {row["message"] for row in rows} == {"its process ended with status 1"}


def test_it_needs_few_libraries(tmp_path: Path) -> None:
    missing = ("dvc", "pydantic", "ruamel.yaml", "psutil", "pynvml", "matplotlib", "pandas", "tqdm", "torchvision")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import benchmarks.gpu"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_figure_with_a_target_has_a_key(device: str) -> None:
    keys = [key for part in gpu.parts(Setting(device)).values() for key in part.keys]
    assert len(set(keys)) == len(keys)
    figures = {key.figure for key in keys}
    with_target = {name for name, figure in FIGURES.items() if figure.target is not None}
    assert figures >= (with_target if device == "cuda" else with_target - {"lunet training peak"})
    steps = {(key.variant, key.precision) for key in keys if key.figure == "lunet step"}
    graphs = ["graph", "compiled, graph"] if device == "cuda" else []
    assert steps >= {(variant, p) for variant in ("eager", "compiled", *graphs) for p in ("float32", "tf32")}


def sample(key: Key, value: float) -> Row:
    return {"kind": "sample", **key._asdict(), "round": 0, "value": value}


@pytest.mark.parametrize(("values", "within"), [([0.1, 0.11, 0.12, 0.5, 0.6], True), ([0.13] * 5, False)])
def test_medians_are_compared_with_target_and_poster(values: Sequence[float], within: bool) -> None:
    key, other = Key("lunet step", "graph", "tf32"), Key("realnvp density", "eager", "float32")
    table = gpu.summarise([sample(other, 5.53), *(sample(key, value) for value in values)])
    assert [row["figure"] for row in table] == ["lunet step", "realnvp density"]
    assert table[0]["median"] == np.median(values)
    assert [table[0]["low"], table[0]["high"]] == pytest.approx(np.quantile(values, [0.25, 0.75]))
    assert table[0]["within_target"] == within
    assert table[0]["poster_over_median"] == pytest.approx(1.2 / np.median(values))
    assert (table[1]["within_target"], table[1]["low"]) == (None, 5.53)
    assert table[1]["poster_over_median"] == pytest.approx(100)
