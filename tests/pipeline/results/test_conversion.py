"""Tests that printed figures convert to honest ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_trainings import CPU, recipe_of

from lunet import load_flow
from pipeline.core.dataset import Dataset
from pipeline.core.params import Evaluate
from pipeline.evaluation.record import Likelihood
from pipeline.evaluation.scores import evaluate
from pipeline.results.conversion import converted
from pipeline.train import train
from pipeline.training.models import groups


@pytest.mark.parametrize("name", ["lunet", "realnvp", "lunet_released", "realnvp_released"])
@pytest.mark.parametrize("classes", ["all", "each"])
def test_a_printed_figure_converts_to_the_honest_one(
    smoke_values: Any, dataset: Dataset, tmp_path: Path, name: str, classes: str
) -> None:
    recipe = recipe_of(smoke_values, name, classes=classes)
    train(dataset, recipe, 0, CPU, tmp_path, name)
    models = {key: load_flow(tmp_path / key) for key in groups(dataset, recipe)}
    settings = smoke_values["evaluate"] | {"draws": 100, "sample_rows": 1, "sample_columns": 1}
    evaluation, _ = evaluate(models, dataset, recipe, Evaluate.model_validate(settings), 0)
    per_class = {label: Likelihood.model_validate(likelihood) for label, likelihood in evaluation["per_class"].items()}
    assert len(per_class) == 2
    # What is left is the noise of the logit's slopes: 100 draws of 6,400 pixels.
    assert converted(per_class, recipe, dataset) == pytest.approx(evaluation["test"]["bits_per_dim"]["mean"], abs=0.003)
    assert evaluation["test"]["poster_bits_per_pixel"] != pytest.approx(
        evaluation["test"]["bits_per_dim"]["mean"], abs=0.3
    )
