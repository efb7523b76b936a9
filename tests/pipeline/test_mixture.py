"""The experiment in two dimensions: the known density, many initialisations in one flow, and the output files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_results import SMALL, Project, parameters
from scipy import stats

from lunet import LUNet
from pipeline import mixture
from pipeline.core.console import UserError
from pipeline.core.files import read_json
from pipeline.core.params import Mixture, load_params
from pipeline.mixture import (
    CENTRES,
    STD,
    DivergedError,
    draw,
    entropy,
    experiment,
    fit,
    keep_apart_,
    log_density,
    one_by_one,
    side_by_side,
)
from pipeline.presets.merged import load_preset, preset_values
from pipeline.results.mixture_record import Interval
from pipeline.results.reading import read_densities, read_mixture


@pytest.fixture
def settings() -> Mixture:
    """The settings of the smoke preset, cut to a few steps."""
    mixture = load_preset("smoke").mixture
    return mixture.model_copy(update={"layers": 4, "train_points": 900, "test_points": 300, "starts": 2, "steps": 20})


def flows(n: int = 3, layers: int = 4) -> list[LUNet]:
    generator = torch.Generator().manual_seed(0)
    return [LUNet(2, layers).double().uniform_(generator) for _ in range(n)]


# The mixture


def test_the_centres_are_those_of_the_released_code() -> None:
    """make_blobs draws them first, each coordinate between -10 and 10."""
    released = np.random.RandomState(1).uniform(-10, 10, (4, 2))
    assert np.abs(released - np.array(CENTRES)).max() < 1e-7


def test_the_density_is_that_of_the_mixture() -> None:
    x = np.array([[-1.5, 4.2], [-6.6, -5.0], [0.0, 0.0]])
    expected = np.mean([stats.multivariate_normal(centre, STD**2).pdf(x) for centre in CENTRES], axis=0)
    np.testing.assert_allclose(np.exp(log_density(x)), expected, rtol=1e-9)


def test_the_entropy_is_that_of_four_gaussians_far_apart() -> None:
    assert entropy() == pytest.approx(math.log(4) + 1 + math.log(2 * math.pi * STD**2), abs=1e-6)
    assert entropy() == pytest.approx(1.005, abs=5e-4)


def test_the_entropy_accounts_for_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "CENTRES", ((0.0, 0.0), (0.0, 0.0)))
    assert entropy() == pytest.approx(1 + math.log(2 * math.pi * STD**2), abs=1e-6)
    monkeypatch.setattr(mixture, "CENTRES", ((0.0, 0.0), (0.3, 0.0)))
    nats = -log_density(draw(200_000, 5))
    assert entropy() == pytest.approx(nats.mean(), abs=4 * nats.std() / 200_000**0.5)


def test_points_follow_the_mixture_and_differ_by_seed() -> None:
    points = draw(40_000, 0)
    distance = np.linalg.norm(points[:, None] - np.array(CENTRES), axis=2)
    assert np.bincount(distance.argmin(1)) / 40_000 == pytest.approx(np.full(4, 0.25), abs=0.01)
    near = distance.min(1)
    assert (near**2).mean() == pytest.approx(2 * STD**2, rel=0.02)
    assert not set(map(tuple, draw(100, 1))) & set(map(tuple, points))


# Many initialisations in one flow


def test_joined_flows_map_as_each_does_alone() -> None:
    originals = flows()
    joined = side_by_side(originals).eval()
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alone = [flow(x[:, 2 * i : 2 * i + 2]) for i, flow in enumerate(originals)]
    output = joined(x)
    torch.testing.assert_close(output.z, torch.cat([single.z for single in alone], 1))
    expected = sum((single.log_det for single in alone), torch.zeros(50, dtype=torch.float64))
    torch.testing.assert_close(output.log_det, expected)
    for before, after in zip(originals, one_by_one(joined, 3), strict=True):
        for name, value in before.state_dict().items():
            assert torch.equal(after.state_dict()[name], value)


def test_joined_flows_keep_their_gradients_and_are_clipped_separately() -> None:
    originals = flows()
    x = torch.from_numpy(draw(64, 0))
    joined = side_by_side(originals).train()
    (-joined.log_prob(x.repeat(1, 3)).mean()).backward()
    assert any(bool(layer.lu.grad[:2, 2:].any()) for layer in joined.layers if layer.lu.grad is not None)
    keep_apart_(joined, 1.0)
    for index, flow in enumerate(originals):
        (-flow.log_prob(x).mean()).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        at = slice(2 * index, 2 * index + 2)
        for layer, joined_layer in zip(flow.layers, joined.layers, strict=True):
            assert layer.lu.grad is not None
            assert joined_layer.lu.grad is not None
            assert joined_layer.bias.grad is not None
            torch.testing.assert_close(joined_layer.lu.grad[at, at], layer.lu.grad)
            torch.testing.assert_close(joined_layer.bias.grad[at], layer.bias.grad)
            rest = joined_layer.lu.grad[at].clone()
            rest[:, at] = 0
            assert not rest.any()


def test_training_keeps_the_flows_independent(settings: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[LUNet] = []

    def split(joined: LUNet, n: int) -> list[LUNet]:
        networks.append(joined)
        return one_by_one(joined, n)

    monkeypatch.setattr(mixture, "one_by_one", split)
    fit(torch.from_numpy(draw(200, 0)), settings)
    for layer in networks[0].layers:
        assert not layer.lu[:2, 2:].any()
        assert not layer.lu[2:, :2].any()


# The fit


def test_the_best_initialisation_is_returned(settings: Mixture) -> None:
    points = torch.from_numpy(draw(900, 0))
    best, first = (fit(points, settings.model_copy(update={"starts": n, "steps": 60})) for n in (6, 1))
    new = torch.from_numpy(draw(900, 1))
    assert best.log_prob(new).mean() > first.log_prob(new).mean()
    again = fit(points, settings.model_copy(update={"starts": 6, "steps": 60}))
    assert torch.equal(again.log_prob(new), best.log_prob(new))


def test_more_steps_beat_the_gaussian_and_nothing_beats_the_entropy(settings: Mixture, tmp_path: Path) -> None:
    more = settings.model_copy(update={"layers": 7, "starts": 4, "steps": 300})
    result = experiment(more, tmp_path / "mixture.npy")
    densities = read_densities(tmp_path, result)
    nats = {name: model.nats.mean for name, model in result.models.items()}
    assert nats["truth"] < nats["lunet"] < nats["gaussian"]
    above = {name: model.above_truth for name, model in result.models.items()}
    assert above["truth"] == Interval(mean=0.0, ci_low=0.0, ci_high=0.0, n=300)
    lows = [above[name].ci_low or 0.0 for name in ("gaussian", "lunet")]
    assert lows[0] > lows[1] > 0
    interval = result.models["truth"].nats
    assert interval.ci_low is not None
    assert interval.ci_high is not None
    assert interval.ci_low < result.entropy < interval.ci_high
    assert result.printed < result.entropy < result.printed_honest
    # Every density sums to about 1 over the grid; the Gaussian's tails leave it.
    mass = {name: float(np.exp(values).sum() * mixture.SPACING**2) for name, values in densities.items()}
    assert mass["truth"] == pytest.approx(1, abs=1e-3)
    assert 0.9 < mass["gaussian"] < 1
    assert 0.9 < mass["lunet"] < 1.05


def test_a_diverged_fit_is_a_status_and_the_gaussian_is_still_fitted(settings: Mixture, tmp_path: Path) -> None:
    wild = settings.model_copy(update={"learning_rate": 1e6, "layers": 30})
    with pytest.raises(DivergedError, match=r"the training loss is (nan|inf) after step 20"):
        fit(torch.from_numpy(draw(900, 0)), wild)
    result = experiment(wild, tmp_path / "mixture.npy")
    assert result.status == "diverged"
    assert "after step" in (result.message or "")
    assert set(result.models) == set(read_densities(tmp_path, result)) == {"truth", "gaussian"}
    json.dumps(result.model_dump(mode="json"), allow_nan=False)


# Output files


def test_the_stage_writes_what_collect_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path, parameters(**SMALL, mixture=small()))
    arguments = ["mixture", "--out", str(project.runs / "mixture.json"), "--params", str(project.params)]
    monkeypatch.setattr("sys.argv", arguments)
    threads = torch.get_num_threads()
    mixture.main()
    torch.set_num_threads(threads)
    assert "checksum" not in read_json(project.runs / "mixture.json")
    assert "checksum" in (project.runs / "mixture.json").read_text(encoding="utf-8")
    read = read_mixture(project.runs, load_params(project.params))
    assert read.status == "complete"
    densities = read_densities(project.runs, read)
    assert {name: values.shape for name, values in densities.items()} == dict.fromkeys(read.densities, (186, 144))
    # The highest density of the truth is at a centre.
    row, column = np.unravel_index(densities["truth"].argmax(), (186, 144))
    left, _, bottom, _ = read.box
    peak = np.array([left + mixture.SPACING * column, bottom + mixture.SPACING * row])
    assert np.linalg.norm(peak - np.array(CENTRES), axis=1).min() < 0.1
    project.collect()
    assert (project.reports / "figures/mixture.svg").stat().st_size > 10_000


def small() -> dict[str, Any]:
    values: dict[str, Any] = {**preset_values("smoke")["mixture"], "layers": 3, "starts": 2, "steps": 5}
    return values


def test_missing_changed_or_outdated_files_are_refused(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(**SMALL))
    params = load_params(project.params)
    read = read_mixture(project.runs, params)
    (project.runs / "mixture.npy").write_bytes(b"other")
    with pytest.raises(UserError, match=r"mixture\.npy is not what was written with .*pipeline\.mixture"):
        read_densities(project.runs, read)
    (project.runs / "mixture.npy").unlink()
    with pytest.raises(UserError, match=r"mixture\.npy is missing"):
        read_densities(project.runs, read)
    project.change("mixture.json", settings__steps=7)
    with pytest.raises(UserError, match=r"other parameters than mixture has now; run: python -m pipeline\.mixture"):
        read_mixture(project.runs, params)
    (project.runs / "mixture.json").unlink()
    with pytest.raises(UserError, match=r"mixture\.json is missing; run: .*pipeline\.mixture --out"):
        project.read()
