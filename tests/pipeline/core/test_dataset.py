"""Reading a data set from disk: it must be whole, and its name the requested one."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_trainings import folder_with, stage

from pipeline.core.console import UserError
from pipeline.core.dataset import load_dataset


def test_data_of_another_name_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    assert stage("pipeline.data", "--dataset", "mnist", "--out", "data/mnist", cwd=folder).returncode == 0
    arguments = ("--dataset", "fashion_mnist", "--data", "data/mnist", "--recipe", "gaussian", "--out", "runs/x")
    finished = stage("pipeline.train", *arguments, cwd=folder)
    assert finished.returncode == 1
    assert "holds the data set mnist, not fashion_mnist" in finished.stderr


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": "mnist", "title": "MNIST", "class_names": [], "sha256": {}}'])
def test_incomplete_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match="lacks a name"):
        load_dataset(tmp_path)


def test_missing_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.json is missing"):
        load_dataset(tmp_path / "absent")
