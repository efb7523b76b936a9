"""A flow and an activation of one's own: a recipe names them, and every stage works, without a change elsewhere."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_trainings import folder_with
from torch import Tensor, nn
from trainings import write_halves

import pipeline.evaluate
import pipeline.measuring.quantities
import pipeline.train
import pipeline.use
from lunet import Activation, Flow
from pipeline.core.files import read_json
from pipeline.core.params import load_params
from pipeline.measuring.record import Timing


class Affine(Flow, kind="affine_of_this_test"):
    """An affine map of each feature."""

    starts = {"standardise": 100}  # noqa: RUF012

    def __init__(self, features: int, bound: float = 3.0) -> None:
        super().__init__(features)
        self.bound = bound
        self.log_scale, self.shift = (nn.Parameter(torch.zeros(features)) for _ in range(2))

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "bound": self.bound}

    @torch.no_grad()
    def standardise_(self, x: Tensor) -> None:
        std, mean = torch.std_mean(x, dim=0)
        self.log_scale.copy_(-std.log())
        self.shift.copy_(-mean)

    def _scale(self) -> Tensor:
        return self.bound * torch.tanh(self.log_scale / self.bound)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x + self.shift) * self._scale().exp(), self._scale().sum().expand(len(x))

    def _inverse(self, z: Tensor) -> Tensor:
        return z * (-self._scale()).exp() - self.shift


class Stretch(Activation, kind="stretch_of_this_test"):
    """The map a x."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.factor * x, torch.full_like(x, math.log(self.factor))

    def inverse(self, y: Tensor) -> Tensor:
        return y / self.factor

    def config(self) -> dict[str, Any]:
        return {"factor": self.factor}


MODELS = {
    "flow": "{kind: affine_of_this_test, bound: 2.5}",
    "activation": "{kind: lunet, layers: 2, activation: {kind: stretch_of_this_test, factor: 1.5}, start: whiten}",
}
RECIPE = """  own:
    model: {model}
    classes: all
    margin: 0.01
    training: {{objective: likelihood, epochs: 3, batch_size: 50, optimizer: adam, learning_rate: 0.02,
      elementwise_rate: null, schedule: constant, warmup: null, halve_every: null, clip_norm: 1.0, holdout: 0.1,
      validations: 3}}
evaluate:
"""


@pytest.mark.parametrize("name", MODELS)
def test_it_is_trained_saved_evaluated_measured_and_sampled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_with(tmp_path, recipe=("evaluate:\n", RECIPE.format(model=MODELS[name])))
    write_halves(tmp_path / "data/mnist")
    monkeypatch.chdir(tmp_path)
    cell = ["--dataset", "mnist", "--recipe", "own", "--out"]

    def call(main: Any, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["stage", *arguments])
        main()
        return capsys.readouterr().out

    call(pipeline.train.main, *cell, "runs/train/mnist-own-0")
    holdout = pd.read_csv("runs/train/mnist-own-0/history.csv")["holdout_bits_per_dim"]
    assert holdout.nunique() == 4
    said = call(pipeline.evaluate.main, *cell, "runs/evaluate/mnist-own-0.json")
    assert re.search(r"complete, \d\.\d{4} bits/dim on the test set, \d of [\d,]+ pixels do not come back", said)
    evaluation = read_json(tmp_path / "runs/evaluate/mnist-own-0.json")
    assert evaluation["status"] == "complete"
    assert 0 < evaluation["test"]["bits_per_dim"]["mean"] < 8  # that of uniform pixels
    assert evaluation["round_trip"]["pixels_exact"] > 0.999
    call(pipeline.use.main, "runs/train/mnist-own-0", "sample", "--count", "12", "--out", "samples.npy")
    samples = np.load("samples.npy")
    assert samples.shape == (12, 8, 8)
    assert 60 < samples.mean() < 180
    images = np.load("data/mnist/train_images.npy")[:64]
    step = pipeline.measuring.quantities.take("times.step", load_params(), "own", images)
    assert Timing.model_validate(step).samples
