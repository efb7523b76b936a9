"""A command runs as long as it is allowed to, and ends with its children."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core.files import is_running
from pipeline.runner import processes
from pipeline.runner.processes import run_while

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
open("child", "w").write(str(child.pid))
time.sleep(1000)
"""


def test_the_exit_status_is_that_of_the_command() -> None:
    assert run_while([sys.executable, "-c", "raise SystemExit(7)"], lambda: True) == 7


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX systems have them")
@pytest.mark.parametrize("deaf", [False, True])
def test_a_command_that_is_no_longer_allowed_ends_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "GRACE", 0.5)
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {PARENT}" if deaf else PARENT
    code = code.replace("; \n", "\n")
    status = run_while(
        [sys.executable, "-c", code], lambda: not Path("child").exists() or not Path("child").read_text()
    )
    assert status == (-9 if deaf else -15)
    child = int(Path("child").read_text())
    end = time.monotonic() + 10
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_running(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_command_dies_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    sleeper = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    code = "import sys; from pipeline.runner.processes import run_while; "
    code += f"run_while([sys.executable, '-c', {sleeper!r}], lambda: True)"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    end = time.monotonic() + 20
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    runner.kill()
    runner.wait()
    while is_running(int(pid.read_text())) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_running(int(pid.read_text()))
