"""Writes a preset into `params.yaml` and shows what changed."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import get_args

from pipeline.console import exit_with, say
from pipeline.files import write_text
from pipeline.params import PRESETS, Preset, load_params


def main() -> None:
    """Write the preset that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.preset",
        description="Write a complete set of parameters, comments included, and print what changes. "
        "smoke: all of it on a small subset, in about two minutes; laptop: the default; overnight: "
        "more passes, some hours; paper: the paper's scale.",
    )
    parser.add_argument("preset", choices=get_args(Preset))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: %(default)s")
    arguments = parser.parse_args()
    source = PRESETS / f"{arguments.preset}.yaml"
    load_params(source)
    fresh = source.read_text(encoding="utf-8")
    # What is replaced may be damaged.
    old = arguments.params.read_text(encoding="utf-8", errors="replace") if arguments.params.exists() else ""
    write_text(arguments.params, fresh)
    names = (f"{arguments.params} before", f"{arguments.params} now")
    difference = list(difflib.unified_diff(old.splitlines(), fresh.splitlines(), *names, lineterm="", n=1))
    say("\n".join(difference) or f"{arguments.params} already is the preset {arguments.preset}")


if __name__ == "__main__":
    exit_with(main)
