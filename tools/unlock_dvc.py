"""Removes the locks of killed `dvc` processes, also of zombies and in truncated files, which DVC itself keeps."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.core.console import exit_with, say
from pipeline.core.files import is_running

LOCKS = Path(".dvc/tmp/rwlock")


def main() -> None:
    """Remove DVC's lock file unless a process that it names is still running."""
    argparse.ArgumentParser(
        prog="python -m tools.unlock_dvc",
        description=f"Remove DVC's lock file, {LOCKS}, unless a process that it names is still running. A dvc process "
        "that was killed leaves it; DVC itself keeps the locks of a zombie, and refuses a file that was cut off. Run "
        "it in the root of the repository; make repro runs it first.",
    ).parse_args()
    try:
        locks = json.loads(LOCKS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        # Its writer was killed halfway, and DVC would refuse the file from now on.
        locks = {}
    owners = holders(locks)
    if not any(is_running(pid) for pid in owners):
        LOCKS.unlink(missing_ok=True)
        if owners:
            say("freed the locks that a stopped dvc run had left")


def holders(locks: Any) -> set[int]:
    """The ids of the processes that the contents of a lock file name."""
    if isinstance(locks, dict):
        pids = {locks["pid"]} if isinstance(locks.get("pid"), int) else set()
        return pids.union(*map(holders, locks.values()))
    return set[int]().union(*map(holders, locks)) if isinstance(locks, list) else set()


if __name__ == "__main__":
    exit_with(main)
