"""A run of the whole pipeline that is killed repeatedly ends with the metrics of an undisturbed run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fault_suite import LONG

from pipeline.presets.merged import preset_text

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.name != "posix", reason="a group of processes is killed as POSIX systems do"),
    pytest.mark.skipif(not LONG, reason="takes many minutes: make faults"),
]

ROOT = Path(__file__).parents[2]
KILLS = 5
STAGES = 20


def checkout(folder: Path, source: Path = ROOT) -> Path:
    """Copy a project without git metadata, with the smoke preset and a checkpoint every second."""
    for name in ("lunet", "pipeline", "tools", ".dvc"):
        unwanted = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
        shutil.copytree(source / name, folder / name, ignore=unwanted)
    for name in ("dvc.yaml", "Makefile", ".dvcignore"):
        shutil.copy(source / name, folder)
    (folder / "reports/published").mkdir(parents=True)
    preset = preset_text("smoke")
    assert "checkpoint_seconds: 60" in preset
    (folder / "params.yaml").write_text(preset.replace("checkpoint_seconds: 60", "checkpoint_seconds: 1"))
    return folder


def repro(folder: Path, stop: Callable[[list[str]], bool] = lambda _: False) -> list[str]:
    """The output lines of one `make repro`, killed with all its processes when ``stop`` of the lines is true.

    This interpreter replaces the environment that `make setup` would install.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.Popen(
        ["make", "--assume-old", ".venv/.installed", "repro"],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if stop(lines):
            os.killpg(process.pid, signal.SIGKILL)
            lines += process.stdout.readlines()
            break
    else:
        assert process.wait() == 0, "".join(lines)
    process.stdout.close()
    process.wait()
    return lines


def begun(lines: list[str]) -> int:
    """The number of stages that a run has begun."""
    return sum("Running stage" in line for line in lines)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after a run to its end."""
    folder = checkout(tmp_path_factory.mktemp("whole") / "undisturbed")
    assert begun(repro(folder)) == STAGES
    return folder


def metrics(folder: Path) -> bytes:
    return (folder / "reports/metrics.json").read_bytes()


def test_a_run_that_was_killed_five_times_ends_with_the_same_metrics(tmp_path: Path, undisturbed: Path) -> None:
    killed = checkout(tmp_path / "killed", undisturbed)
    random, total = Random(0), 0
    for _ in range(KILLS):
        # At a random moment of one of the next three stages; there are enough stages for all kills.
        stages, delay = random.randint(1, 3), random.uniform(0, 4)

        def stop(lines: list[str], stages: int = stages, delay: float = delay) -> bool:
            if begun(lines) < stages:
                return False
            time.sleep(delay)
            return True

        lines = repro(killed, stop)
        print(f"killed in stage {begun(lines)} of this run: {lines[-1].strip()}")
        total += begun(lines)
    total += begun(repro(killed))
    assert metrics(killed) == metrics(undisturbed)
    # No finished stage ran again: only those that were killed began twice.
    assert STAGES < total <= STAGES + KILLS
    assert list((killed / "runs").rglob(".*")) == []


def test_a_second_clone_with_the_same_cache_takes_the_results_from_it(tmp_path: Path, undisturbed: Path) -> None:
    clone = checkout(tmp_path / "clone", undisturbed)
    (clone / ".dvc/config.local").write_text(f"[cache]\n    dir = {undisturbed / '.dvc/cache'}\n", encoding="utf-8")
    # Only collect and report run: their files are in git, not in the cache.
    assert begun(repro(clone)) == 2
    assert metrics(clone) == metrics(undisturbed)
