"""The recipes of the paper preset, with models and trainings that take a moment, and a pretend GPU to run them on."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch

from pipeline.core.dataset import Dataset
from pipeline.core.params import Params, Recipe, validate
from pipeline.presets.merged import preset_values

CUDA = torch.device("cuda")
SMALL = {
    "lunet": {"layers": 2},
    "realnvp": {"couplings": [1, 1, 1], "planes": 2, "blocks": 1},
    "realnvp_released": {"couplings": [1, 1, 1], "planes": 2},
}
RECIPES = preset_values("paper")["grid"]["recipes"]
CASES = [*product(RECIPES, ("all", "each"))]


def small_params(classes: str = "all", warmup: int = 1, **training: Any) -> Params:
    """The paper preset with small models and short trainings, not captured; further keywords change every training."""
    values = preset_values("paper")
    values["evaluate"] |= {"draws": 2, "batch_size": 16, "sample_rows": 2, "sample_columns": 3, "round_trip_images": 20}
    values["measure"] |= {"repetitions": 5, "seconds": 1e-9, "warmup": warmup, "large_batch": 8}
    for recipe in values["recipes"].values():
        recipe["classes"] = classes
        recipe["model"] |= SMALL.get(recipe["model"]["kind"], {})
        if recipe["training"]:
            recipe["training"] |= {"epochs": 1, "batch_size": 16, "validations": 2, "capture": False, "compile": False}
            recipe["training"] |= training
    return validate(values, "params.yaml")


def small_recipe(name: str, classes: str = "all", **training: Any) -> Recipe:
    return small_params(classes, 1, **training).recipe(name)


def halves(train: int = 160, test: int = 40) -> Dataset:
    """Two classes of 8x8 images: a bright left half, and a bright right half."""
    random = np.random.default_rng(0)

    def images(count: int) -> tuple[Any, Any]:
        labels = np.arange(count, dtype=np.uint8) % 2
        shade = np.where((np.arange(8) < 4) == (labels[:, None, None] == 0), 200, 40)
        return (shade + random.integers(-30, 30, (count, 8, 8))).astype(np.uint8), labels

    return Dataset("halves", "Halves", ("left", "right"), *images(train), *images(test), {})
