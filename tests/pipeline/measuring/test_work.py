"""The model that is measured: an LU-Net folds its inverses before the large batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_trainings import CPU, recipe_of

from lunet import LUNet, folding, load_flow
from pipeline.core.dataset import Dataset
from pipeline.train import train


@pytest.mark.parametrize("name", ["lunet", "lunet_learned"])
def test_a_trained_lu_net_can_fold_its_inverses(smoke_values: Any, dataset: Dataset, tmp_path: Path, name: str) -> None:
    if name == "lunet":
        smoke_values["recipes"]["lunet"]["model"]["start"] = "copula"
    train(dataset, recipe_of(smoke_values, name), 0, CPU, tmp_path, name)
    flow = load_flow(tmp_path / "all").flow
    assert isinstance(flow, LUNet)
    assert all(folding.inverse(layer.lu) is not None for layer in flow.layers)
