"""Loads the models of a trained run, and says which of them scores which images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lunet import ImageFlow, SavedFlowError, UnknownKindError, load_flow
from pipeline.core.cell import Key
from pipeline.core.console import UserError
from pipeline.core.params import Recipe
from pipeline.core.record import load_record
from pipeline.training.record import Run

RETRAIN = "dvc repro -f -s train"
USABLE = ("complete", "partial")
Models = Mapping[str, ImageFlow]


@dataclass(frozen=True)
class TrainedRun:
    """A trained run; its models are named after their classes, or "all".

    There are none if the training failed, and only the finished ones if it is partial.
    """

    name: str
    record: Run
    models: Models

    @property
    def per_class(self) -> bool:
        """Whether there is a model for each class."""
        return "all" not in self.record.models


def load_run(folder: Path, device: torch.device, key: Key | None = None, recipe: Recipe | None = None) -> TrainedRun:
    """Load a trained run.

    Args:
        folder: The output folder of the train stage.
        device: The device of the models.
        key: The cell that the run must be of.
        recipe: The parameters that it must have been trained with.

    Raises:
        UserError: If there is no such run, it is of another cell or of other parameters, or a file is damaged.
    """
    path = folder / "run.json"
    if not path.is_file():
        runs = sorted(path.parent.name for path in folder.parent.glob("*/run.json"))
        known = f"; {folder.parent} has: {', '.join(runs)}" if runs else ""
        raise UserError(f"{folder} is not a trained run, it has no run.json{known}; train one with: dvc repro")
    run = load_record(Run, path, RETRAIN)
    asked: dict[str, Any] = {} if key is None else key._asdict()
    if recipe is not None:
        asked["recipe_params"] = recipe.model_dump(mode="json")
    if differing := [name for name, value in asked.items() if getattr(run, name) != value]:
        raise UserError(
            f"{path} is not the run that was asked for: {', '.join(differing)} differ; train it again with: dvc repro"
        )
    try:
        names = [name for name, fit in run.models.items() if run.status in USABLE and fit.status == "complete"]
        return TrainedRun(folder.name, run, {name: load_flow(folder / "flows" / name, device) for name in names})
    except SavedFlowError as error:
        is_unknown = isinstance(error.__cause__, UnknownKindError)
        advice = "put the module with the class into lunet/" if is_unknown else f"train it again with: {RETRAIN}"
        raise UserError(f"{error}; {advice}") from None


def model_for(models: Models, label: int) -> ImageFlow:
    """The model of a class, or the one model of all classes."""
    return models["all" if "all" in models else str(label)]


def by_model(models: Models, *labels: Tensor) -> Iterator[tuple[ImageFlow, list[Tensor]]]:
    """For each model with images in the first labels, the model and the indices of its images in each labels."""
    for name, model in models.items():
        rows = [torch.arange(len(of)) if name == "all" else (of == int(name)).nonzero().flatten() for of in labels]
        if len(rows[0]):
            yield model, rows
