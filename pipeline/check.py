"""Looks at params.yaml before anything runs: DVC reads what it needs of it only where a stage needs it."""

from __future__ import annotations

from pathlib import Path

from pipeline.console import exit_with
from pipeline.params import load_params


def main() -> None:
    """Refuse a parameter file with a mistake."""
    load_params(Path("params.yaml"))


if __name__ == "__main__":
    exit_with(main)
