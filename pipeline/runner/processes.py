"""Runs a command for a limited time, and ends it with its children."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil

# Seconds: until a process that was asked to stop is killed; between two polls of a running one.
GRACE, PAUSE = 20.0, 0.1
PR_SET_PDEATHSIG = 1  # in Linux's prctl.h


def run_while(command: Sequence[str], is_allowed: Callable[[], bool]) -> int:
    """Run a command as long as it is allowed to run, and return its exit status."""
    process = subprocess.Popen(command, preexec_fn=_die_with_parent if sys.platform == "linux" else None)
    while (status := process.poll()) is None:
        if not is_allowed():
            return stop(process)
        time.sleep(PAUSE)
    return status


def _die_with_parent() -> None:
    """Let this process be killed when its parent is; otherwise a training would go on beside the next one."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def stop(process: subprocess.Popen[bytes]) -> int:
    """Terminate a process and its children, and kill them after the grace period; returns the exit status."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        processes = [parent, *parent.children(recursive=True)]
        for running in processes:
            running.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        for running in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                running.kill()
    return process.wait()
