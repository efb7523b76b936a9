"""The record of the train stage, `runs/train/<key>/run.json`."""

from __future__ import annotations

from typing import Any

from pydantic import FiniteFloat

from pipeline.core.record import Parameters, Record, StageRecord


class Model(Record):
    """The outcome of training one model."""

    holdout_images: int
    epochs: FiniteFloat | None = None
    best_epoch: FiniteFloat | None
    best_holdout_bits_per_dim: FiniteFloat | None
    infinite_pixels: int | None = None


class Run(StageRecord):
    """`runs/train/<key>/run.json`."""

    seed: int
    seconds: FiniteFloat
    parameters: Parameters | None
    recipe_params: dict[str, Any]
    models: dict[str, Model]
