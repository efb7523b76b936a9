"""Changed recipes and parameter files of the smoke preset, and stages as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.core.params import Recipe, validate
from pipeline.presets.merged import preset_text

CPU = torch.device("cpu")


def recipe_of(values: Any, name: str, **changes: Any) -> Recipe:
    values["recipes"][name] |= changes
    return validate(values, "params.yaml").recipe(name)


def stage(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def folder_with(tmp_path: Path, **changes: Any) -> Path:
    text = preset_text("smoke")
    for before, after in changes.values():
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    return tmp_path
