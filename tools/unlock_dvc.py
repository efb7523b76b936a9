"""Frees what killed `dvc` processes have left locked: DVC does so too, but not for zombies, nor from half a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.core.console import exit_with, say
from pipeline.core.files import is_running

LOCKS = Path(".dvc/tmp/rwlock")


def main() -> None:
    """Remove DVC's file of locks unless a process that it names still runs."""
    try:
        locks = json.loads(LOCKS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        # Its writer was killed half way, and DVC would refuse it from now on.
        locks = {}
    owners = holders(locks)
    if not any(is_running(pid) for pid in owners):
        LOCKS.unlink(missing_ok=True)
        if owners:
            say("freed the locks that a stopped dvc run had left")


def holders(locks: Any) -> set[int]:
    """The processes that a file of locks names."""
    if isinstance(locks, dict):
        own = {locks["pid"]} if isinstance(locks.get("pid"), int) else set()
        return own.union(*map(holders, locks.values()))
    return set[int]().union(*map(holders, locks)) if isinstance(locks, list) else set()


if __name__ == "__main__":
    exit_with(main)
