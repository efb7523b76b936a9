"""Tests that git is asked, and that its absence is no error."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.git import git


def test_output_without_white_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert git("rev-parse", "HEAD") is None
    git("init", "--quiet", "--initial-branch", "trunk")
    assert git("symbolic-ref", "--short", "HEAD") == "trunk"


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git("--version") is None
