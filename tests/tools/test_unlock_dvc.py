"""Locks of DVC: those of processes that ended, and truncated files, are removed; those of running ones stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import unlock_dvc as unlock


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unlock_dvc"])
    unlock.LOCKS.parent.mkdir(parents=True)
    return unlock.LOCKS


def held_by(pid: int) -> dict[str, Any]:
    """Locks as DVC writes them: for a path, one writer or any number of readers."""
    info = {"pid": pid, "cmd": "dvc repro"}
    return {"write": {"/x/runs/train/a": info}, "read": {"/x/data": [info], "/x/lunet": [info]}}


def test_locks_of_an_ended_process_are_removed(locks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    locks.write_text(json.dumps(held_by(ended.pid)))
    unlock.main()
    assert not locks.exists()
    assert "freed the locks that a stopped dvc run had left" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="zombies are POSIX's")
def test_locks_of_a_zombie_are_removed(locks: Path) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    locks.write_text(json.dumps(held_by(zombie.pid)))
    unlock.main()
    assert not locks.exists()
    zombie.wait()


@pytest.mark.parametrize("text", ["", '{"write": {"/x', "\0\0"])
def test_a_truncated_file_is_removed(locks: Path, text: str) -> None:
    locks.write_text(text)
    unlock.main()
    assert not locks.exists()


def test_locks_of_a_running_process_stay(locks: Path) -> None:
    locks.write_text(json.dumps(held_by(os.getpid())))
    unlock.main()
    assert json.loads(locks.read_text()) == held_by(os.getpid())


def test_nothing_is_printed_without_locks(locks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unlock.main()
    locks.write_text('{"read": {}, "write": {}}')
    unlock.main()
    assert capsys.readouterr().out == ""
