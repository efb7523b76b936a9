"""A command runs as long as it is allowed to, and ends with its children."""

from __future__ import annotations

import os
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
