"""Asks git about the project, where there is git."""

from __future__ import annotations

import subprocess


def git(*arguments: str) -> str | None:
    """The output of a git command, without white space at its ends; None if it fails or git is missing."""
    try:
        process = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return process.stdout.strip() if process.returncode == 0 else None
