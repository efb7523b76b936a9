"""The command that writes a preset, or checks the parameter file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.presets.merged import PRESETS, preset_text


def write(preset: str, params: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.preset", preset, "--params", str(params)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_written_whole_with_its_comments(tmp_path: Path, preset: str) -> None:
    finished = write(preset, tmp_path / "params.yaml")
    assert finished.returncode == 0
    assert (tmp_path / "params.yaml").read_bytes() == preset_text(preset).encode()


def test_the_difference_is_printed(tmp_path: Path) -> None:
    write("laptop", tmp_path / "params.yaml")
    output = write("smoke", tmp_path / "params.yaml").stdout
    assert "-preset: laptop" in output
    assert "+preset: smoke" in output
    assert "already is the preset smoke" in write("smoke", tmp_path / "params.yaml").stdout


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    finished = write("desktop", tmp_path / "params.yaml")
    assert finished.returncode == 2
    assert ", ".join(PRESETS) in finished.stderr.replace("'", "")
    assert not (tmp_path / "params.yaml").exists()


def test_the_help_says_what_each_preset_is_for() -> None:
    command = [sys.executable, "-m", "pipeline.preset", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for preset, purpose in PRESETS.items():
        assert f"{preset}: {purpose}" in " ".join(output.split())


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"\xff\0")
    assert write("smoke", tmp_path / "params.yaml").returncode == 0
    assert (tmp_path / "params.yaml").read_bytes() == preset_text("smoke").encode()


# Check


def check(params: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.preset", "--check", "--params", str(params)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_mistake_anywhere_in_a_parameter_file_is_refused(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(preset_text("laptop"), encoding="utf-8")
    finished = check(params)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, f"{params} has no mistakes\n", "")
    params.write_text(preset_text("laptop").replace("  - realnvp\n", "  - realnpv\n", 1), encoding="utf-8")
    finished = check(params)
    assert finished.returncode == 1
    assert "grid.recipes names 'realnpv', which recipes lacks" in finished.stderr


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("preset: laptop", "preset: lapotp", "preset: is 'lapotp'; there are: laptop, overnight, paper, smoke"),
        ("kind: realnvp\n", "kind: realnpv\n", "recipes.realnvp.model.kind: is 'realnpv'"),
        ("measure:\n  datasets:\n  - mnist\n", "measure:\n", "measure.datasets: is missing; give data sets"),
    ],
)
def test_names_that_only_the_code_knows_are_checked(tmp_path: Path, before: str, after: str, words: str) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(preset_text("laptop").replace(before, after, 1), encoding="utf-8")
    finished = check(params)
    assert finished.returncode == 1
    assert words in finished.stderr


def test_a_preset_and_the_check_exclude_each_other() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "pipeline.preset", "smoke", "--check"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert "not allowed with" in finished.stderr
