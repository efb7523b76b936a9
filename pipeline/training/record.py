"""The record of the train stage: `runs/train/<key>/run.json`, and `history.csv` beside it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, FiniteFloat

from pipeline.core.record import Message, Parameters, Record, StageRecord, Status

# The columns of the training curves that only the first, the best and the last row have.
DIAGNOSES = ("smallest_diagonal", "condition", "latent_error", "pixels_exact")
# The columns of the training curves, with their types in pandas.
HISTORY = {
    "model": "string",
    "step": "int64",
    **dict.fromkeys(("epoch", "seconds", "learning_rate", "train_bits_per_dim", "holdout_bits_per_dim"), "float64"),
    **dict.fromkeys(DIAGNOSES, "float64"),
}
Row = dict[str, Any]


class Fit(Record):
    """The outcome of training one model.

    ``setup_seconds``, of compilation and of the capture of CUDA graphs, are not part of ``seconds``.
    ``infinite_pixels`` counts the pixels that the released RealNVP's preprocessing would have made infinite; see
    `pipeline.training.objectives.infinite_pixels`. ``history`` has the columns `HISTORY` without ``model``; it is not
    part of `run.json`.
    """

    train_images: int
    holdout_images: int
    status: Status = "complete"
    message: Message | None = None
    epochs: FiniteFloat | None = None
    steps: int | None = None
    seconds: FiniteFloat = 0.0
    setup_seconds: FiniteFloat | None = None
    best_epoch: FiniteFloat | None = None
    best_step: int | None = None
    best_holdout_bits_per_dim: FiniteFloat | None = None
    infinite_pixels: int | None = None
    history: list[Row] = Field(default_factory=list, exclude=True, repr=False)


class Run(StageRecord):
    """`runs/train/<key>/run.json`."""

    seed: int
    seconds: FiniteFloat
    parameters: Parameters | None
    recipe_params: dict[str, Any]
    models: dict[str, Fit]
