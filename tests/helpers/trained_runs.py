"""The folders of trained runs, whose models are Gaussians of small images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fake_results import ENVIRONMENT

from lunet import Gaussian, ImageFlow, save_flow
from pipeline.core.files import write_json
from pipeline.training.record import Fit

MODEL = Fit(train_images=200, holdout_images=0).model_dump(mode="json")


def blots(grey: int, count: int, seed: int = 0) -> torch.Tensor:
    """6x6 images around a grey value, with shape (count, 6, 6)."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(grey - 20, grey + 20, (count, 6, 6), dtype=np.uint8))


def run_record(models: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A `run.json` of the smallest kind."""
    names = {"dataset": "mnist", "recipe": "gaussian", "seed": 0, "status": "complete", "message": None}
    figures = {"seconds": 1.0, "parameters": None, "recipe_params": {}, "models": dict.fromkeys(models, MODEL)}
    return {**names, **figures, "environment": ENVIRONMENT, **changes}


def write_run(folder: Path, models: Mapping[str, int], **changes: Any) -> Path:
    """A run whose models are Gaussians of 6x6 images around a grey value each."""
    for name, grey in models.items():
        model = ImageFlow(Gaussian(36, 0.1), (1, 6, 6), 1e-6)
        model.flow.fit_(model.preprocess(blots(grey, 200))[0])  # type: ignore[operator]
        save_flow(model, folder / "flows" / name)
    write_json(folder / "run.json", run_record(models, **changes), sealed=True)
    return folder
