"""The whole pipeline, killed again and again with all its processes, ends as one that nothing has disturbed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from trainings import LONG

from pipeline.params import PRESETS

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.name != "posix", reason="a group of processes is killed as POSIX systems do"),
    pytest.mark.skipif(not LONG, reason="takes many minutes: make faults"),
]

ROOT = Path(__file__).parents[2]
KILLS = 5


def checkout(folder: Path) -> Path:
    """A copy of the project with the smoke preset, its checkpoints a second apart, and a cache of its own."""
    for name in ("lunet", "pipeline", ".dvc"):
        unwanted = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ("dvc.yaml", "Makefile", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    (folder / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    preset = (PRESETS / "smoke.yaml").read_text(encoding="utf-8")
    assert "checkpoint_seconds: 60" in preset
    (folder / "params.yaml").write_text(preset.replace("checkpoint_seconds: 60", "checkpoint_seconds: 1"))
    return folder


def start(folder: Path, log: str) -> subprocess.Popen[bytes]:
    """`make repro` as the leader of a group of its own, with this interpreter for what `make setup` would install."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["make", "--assume-old", ".venv/.installed", "repro"]
    with (folder / log).open("wb") as output:
        return subprocess.Popen(
            command, cwd=folder, env={**os.environ, "PATH": path}, stdout=output, stderr=output, start_new_session=True
        )


def stages(folder: Path, log: str) -> list[str]:
    """The stages that a run has begun."""
    return [line for line in (folder / log).read_text(encoding="utf-8").splitlines() if "Running stage" in line]


def test_a_run_that_was_killed_five_times_ends_with_the_same_metrics(tmp_path: Path) -> None:
    undisturbed, killed = checkout(tmp_path / "undisturbed"), checkout(tmp_path / "killed")
    # How many lines a run says before it is killed, rather than how long it runs: no matter how fast the machine is, the
    # kills fall anywhere in it.
    assert start(undisturbed, "log").wait() == 0, (undisturbed / "log").read_text(encoding="utf-8")
    random, kills = Random(0), 0
    while kills < KILLS:
        process = start(killed, f"log{kills}")
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(5, 40))
        assert process.poll() is None, "the run ended before it was killed five times"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert start(killed, "last").wait() == 0, (killed / "last").read_text(encoding="utf-8")
    metrics = [(folder / "reports/metrics.json").read_bytes() for folder in (undisturbed, killed)]
    assert metrics[0] == metrics[1]
    # What had been done was not done again: all the runs together have begun a stage for each kill more than needed.
    begun = [stages(killed, log) for log in (*(f"log{kill}" for kill in range(KILLS)), "last")]
    assert sum(map(len, begun)) <= len(stages(undisturbed, "log")) + KILLS
    assert [path for path in killed.rglob(".*-[0-9]*-*") if path.is_dir()] == []
