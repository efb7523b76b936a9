"""The model of each recipe: its architecture, size limits, classes and initialisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_trainings import recipe_of

from pipeline.core.console import UserError
from pipeline.core.dataset import Dataset
from pipeline.core.params import Params
from pipeline.training.models import build, groups, initialise_


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lunet", "LUNet"),
        ("lunet_learned", "LearnedLUNet"),
        ("realnvp", "RealNVP"),
        ("lunet_released", "LUNet"),
        ("realnvp_released", "ReleasedRealNVP"),
        ("gaussian", "Gaussian"),
        ("histogram", "Histogram"),
    ],
)
def test_each_recipe_has_its_flow_and_dtype(params: Params, name: str, kind: str) -> None:
    model = build(params.recipe(name), (1, 8, 8))
    assert (type(model.flow).__name__, model.flow.features, model.shape) == (kind, 64, (1, 8, 8))
    floating = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    assert floating == {torch.float64 if name == "lunet_released" else torch.float32}


def test_a_size_that_an_architecture_cannot_take_is_refused(params: Params) -> None:
    with pytest.raises(
        UserError, match=r"a realnvp cannot take images of 7x7 pixels: .*take the recipe or the data set"
    ):
        build(params.recipe("realnvp"), (1, 7, 7))


def test_a_recipe_has_one_model_for_all_classes_or_one_per_class(smoke_values: Any, dataset: Dataset) -> None:
    assert groups(dataset, recipe_of(smoke_values, "lunet", classes="all")) == {"all": None}
    assert groups(dataset, recipe_of(smoke_values, "lunet", classes="each")) == {"0": 0, "1": 1}


def test_images_that_do_not_determine_a_model_are_refused(smoke_values: Any) -> None:
    smoke_values["recipes"]["lunet"]["model"]["start"] = "whiten"
    recipe = recipe_of(smoke_values, "lunet")
    images = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="a lunet cannot be started from 3 images"):
        initialise_(build(recipe, (1, 8, 8)), recipe, images, torch.Generator().manual_seed(0))
