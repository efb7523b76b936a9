"""Full and read-only disks, and run_bare machines: a stage works, or ends with one line that names the error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_suite import LONG
from trainings import Cell, FileLimit

from pipeline.presets.merged import preset_text

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Callable[[], None]]:
    """Mount a small disk at a folder; yields a function that makes it read-only. Skips the test without permission."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a disk")

    def make_read_only() -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)

    try:
        yield make_read_only
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def one_line(log: str) -> str:
    """The last line of a log; asserts that it is the only error, without a traceback."""
    *before, last = log.splitlines()
    assert last.startswith("error: ")
    assert not any("error" in line.lower() or "Traceback" in line for line in before)
    return last


def test_a_file_size_limit_ends_the_training_with_one_line_and_leaves_no_partial_run(tmp_path: Path) -> None:
    cell, unlimited = Cell(tmp_path / "limited", "lunet"), Cell(tmp_path / "other", "lunet")
    # The limit is smaller than a checkpoint and smaller than a flow.
    assert cell.train(FileLimit(20_000)) == 1
    assert "cannot be written: File too large; the training goes on without this checkpoint" in cell.log
    assert "runs/train/mnist: File too large" in one_line(cell.log)
    assert list((cell.folder / "runs/train").iterdir()) == []
    assert cell.train() == unlimited.train() == 0
    assert cell.outcome() == unlimited.outcome()


def test_a_disk_too_small_for_checkpoints_does_not_end_the_training(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "440k"):
        cell = Cell(tmp_path / "disk", "lunet")
        assert cell.train() == 0, cell.log
        assert "cannot be written: No space left on device; the training goes on" in cell.log


def test_a_full_disk_ends_the_training_with_one_line(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "130k"):
        cell = Cell(tmp_path / "disk", "lunet")
        assert cell.train() == 1
        assert "runs/train/mnist: No space left on device" in one_line(cell.log)
        assert list((cell.folder / "runs/train").iterdir()) == []


def test_a_read_only_disk_ends_the_training_with_one_line(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "1m") as make_read_only:
        cell = Cell(tmp_path / "disk", "lunet")
        cell.log_folder = tmp_path
        make_read_only()
        assert cell.train() == 1
        assert "cannot write .checkpoints/" in (line := one_line(cell.log))
        assert line.endswith(": Read-only file system")


# Machines


def run_bare(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a module without a home directory and git, in the C locale."""
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("variables", [{}, {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}], ids=["C", "ascii"])
def test_a_stage_works_without_home_locale_and_git_in_a_folder_of_any_name(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    folder = tmp_path / "ein Ört mit Lücken"
    folder.mkdir()
    (folder / "params.yaml").write_bytes(preset_text("smoke").encode())
    process = run_bare(folder, "pipeline.data", "--dataset", "mnist", "--out", str(folder / "dätä"), **variables)
    assert (process.returncode, process.stderr) == (0, "")
    assert "written to" in process.stdout
    if LONG:
        options = ["--dataset", "mnist", "--recipe", "histogram", "--data", "dätä"]
        for stage, out in (("train", "runs/train/x"), ("measure", "runs/x.json")):
            process = run_bare(folder, f"pipeline.{stage}", *options, "--out", out, **variables)
            assert (process.returncode, process.stderr) == (0, "")
