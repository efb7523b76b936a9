"""The command that uses a trained run: sampling, scoring, classifying, and its errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from png_files import write_png
from trained_runs import blots, write_run

from lunet import ClassFlows, load_flow
from pipeline import use
from pipeline.core.console import UserError
from pipeline.core.files import write_json
from pipeline.core.streams import generator
from pipeline.sources.custom import read_pictures
from pipeline.use import grid_of

Use = Callable[..., str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with a model for all, one with a model for each of three classes, and two that failed."""
    folder = tmp_path_factory.mktemp("train")
    write_run(folder / "all", {"all": 128})
    write_run(folder / "each", {"0": 40, "1": 128, "2": 215})
    write_run(folder / "lost", {}, status="diverged", message="the loss is not finite at step 7")
    write_run(folder / "large", {}, status="out_of_memory", message="99 GiB are needed")
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Use:
    """What the command prints, run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> str:
        monkeypatch.setattr(sys, "argv", ["use", *map(str, arguments)])
        use.main()
        return capsys.readouterr().out

    return call


# Sampling


@pytest.mark.parametrize("name", ["s.npy", "s.npz"])
def test_samples_are_those_of_the_model_and_follow_the_seed(runs: Path, run: Use, name: str) -> None:
    assert "7 samples of all at temperature 1" in run(runs / "all", "sample", "--count", 7, "--seed", 3, "--out", name)
    samples, _ = read_pictures(Path(name))
    expected = load_flow(runs / "all/flows/all").sample(7, generator("use sample", 3))
    np.testing.assert_array_equal(samples, expected.numpy()[:, 0])
    run(runs / "all", "sample", "--count", 7, "--seed", 4, "--out", name)
    assert (read_pictures(Path(name))[0] != samples).any()


def test_a_png_contains_the_samples_in_a_grid(runs: Path, run: Use) -> None:
    run(runs / "all", "sample", "--count", 5)
    run(runs / "all", "sample", "--count", 5, "--out", "s.npy")
    (picture,), samples = read_pictures(Path("samples.png"))[0], np.load("s.npy")
    assert picture.shape == (2 * 6 + 2, 3 * 6 + 2 * 2)
    np.testing.assert_array_equal(picture[8:, 8:14], samples[4])
    assert (picture[8:, 16:] == 128).all()


def test_with_one_model_for_each_class_each_class_has_a_row(runs: Path, run: Use) -> None:
    run(runs / "each", "sample", "--count", 7)
    (picture,) = read_pictures(Path("samples.png"))[0]
    assert picture.shape == (3 * 6 + 2 * 2, 3 * 6 + 2 * 2)
    assert [round(float(picture[row : row + 6, :6].mean()), -1) for row in (0, 8, 16)] == pytest.approx(
        [40, 130, 210], abs=15
    )
    run(runs / "each", "sample", "--count", 4, "--class", 2, "--out", "s.npy")
    assert np.load("s.npy").mean() == pytest.approx(215, abs=10)


def test_temperature_narrows_the_samples(runs: Path, run: Use) -> None:
    for temperature in (0, 1):
        run(runs / "all", "sample", "--count", 20, "--temperature", temperature, "--out", f"{temperature}.npy")
    assert np.load("0.npy").std(0).max() == 0
    assert np.load("1.npy").std(0).min() > 1


def test_a_grid_of_one_share_is_about_square_and_several_shares_have_a_row_each() -> None:
    images = np.arange(1, 8, dtype=np.uint8)[:, None, None]
    assert grid_of(images, [7]).squeeze().tolist() == [[1, 2, 3], [4, 5, 6], [7, 128, 128]]
    assert grid_of(images, [3, 2, 2]).squeeze().tolist() == [[1, 2, 3], [4, 5, 128], [6, 7, 128]]
    assert grid_of(images[:2], [1, 1, 0])[..., 0, 0].tolist() == [[1], [2]]


# Scores


def test_scores_are_bits_per_dim_with_a_row_for_each_image(runs: Path, run: Use) -> None:
    images = blots(128, 30, seed=1)
    np.save("a.npy", images.numpy())
    said = run(runs / "all", "score", "a.npy", "--draws", 2, "--seed", 5, "--out", "s.csv")
    model = load_flow(runs / "all/flows/all")
    expected = model.bits_per_dim(images, 2, generator("use score", 5)).detach().double().numpy()
    table = pd.read_csv("s.csv")
    assert list(table.columns) == ["image", "bits_per_dim"]
    np.testing.assert_allclose(table["bits_per_dim"], expected, atol=1e-6)
    error = expected.std(ddof=1) / 30**0.5
    assert f"all: mean {expected.mean():.4f} +- {error:.4f} (standard error)" in said


def test_with_one_model_for_each_class_the_score_is_of_the_mixture_or_of_one_class(runs: Path, run: Use) -> None:
    np.save("a.npy", blots(128, 30, seed=1).numpy())
    for name, options in (("mixture", ()), ("own", ("--class", 1)), ("other", ("--class", 0))):
        run(runs / "each", "score", "a.npy", "--out", f"{name}.csv", *options)
    mixture, own, other = (pd.read_csv(f"{name}.csv")["bits_per_dim"] for name in ("mixture", "own", "other"))
    assert (other > own).all()
    np.testing.assert_allclose(mixture, own + np.log2(3) / 36, atol=0.3)
    assert (mixture > own.mean() - 0.5).all()


# Classes


def test_classes_follow_bayes_rule(runs: Path, run: Use) -> None:
    images = torch.cat([blots(grey, 4, seed=2) for grey in (215, 40, 128)])
    for number, image in enumerate(images):
        write_png(Path(f"pictures/{number:02}.png"), image.numpy())
    said = run(runs / "each", "classify", "pictures", "--out", "c.csv")
    assert said.count(": 4 of 12") == 3
    table = pd.read_csv("c.csv")
    models = ClassFlows({name: load_flow(runs / "each/flows" / name) for name in "012"})
    expected = models.classify(images, generator=generator("use score", 0)).tolist()
    assert table["class"].tolist() == expected == [2] * 4 + [0] * 4 + [1] * 4
    assert table["image"][0] == "00.png"
    assert (table["probability"] > 0.99).all()


def test_classes_have_the_names_of_the_data_set(runs: Path, run: Use) -> None:
    write_json(Path("data/mnist/dataset.json"), {"class_names": ["dark", "middle", "bright"]})
    np.save("a.npy", blots(215, 2).numpy())
    assert "bright: 2 of 2" in run(runs / "each", "classify", "a.npy", "--out", "c.csv")
    assert pd.read_csv("c.csv")["class_name"].tolist() == ["bright", "bright"]
    run(runs / "each", "sample", "--count", 1, "--class", "dark")


# Errors


def refused(run: Use, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        run(*arguments)
    return str(caught.value)


def test_unusable_runs_are_refused(runs: Path, run: Use) -> None:
    np.save("a.npy", blots(128, 2).numpy())
    assert "has: all, each, large, lost" in refused(run, runs / "nope", "sample")
    assert "train one with: dvc repro" in refused(run, "nowhere/x", "sample")
    message = refused(run, runs / "lost", "sample")
    assert "no model to use: its training diverged: the loss is not finite at step 7" in message
    message = refused(run, runs / "large", "sample")
    assert "no model to use: its training ran out of memory: 99 GiB are needed" in message
    assert "classes: each" in refused(run, runs / "all", "classify", "a.npy")
    assert "one model for all" in refused(run, runs / "all", "score", "a.npy", "--class", 1)
    assert "it has: 0, 1, 2" in refused(run, runs / "each", "score", "a.npy", "--class", 3)


def test_damaged_weights_are_refused(run: Use, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", {"all": 128})
    (folder / "flows/all/weights.safetensors").write_bytes(b"")
    assert "train it again with: dvc repro -f -s train" in refused(run, folder, "sample")
    write_json(folder / "run.json", {"status": "complete"})
    assert "run.json: dataset: is missing; write it again with" in refused(run, folder, "sample")


def test_images_of_another_size_or_type_are_refused(runs: Path, run: Use) -> None:
    np.save("a.npy", np.zeros((2, 6, 5), np.uint8))
    assert "5x6 pixels; all takes 6x6" in refused(run, runs / "all", "score", "a.npy")
    np.save("a.npy", np.zeros((2, 6, 6)))
    assert "not 8-bit" in refused(run, runs / "all", "score", "a.npy")
    assert "b.npy cannot be read: No such file" in refused(run, runs / "all", "score", "b.npy")
    assert "must end in .png, .npy or .npz" in refused(run, runs / "all", "sample", "--out", "s.jpg")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(runs: Path, run: Use) -> None:
    assert "no CUDA GPU is here" in refused(run, runs / "all", "sample", "--device", "cuda")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sample", "--count", "0"), "from 1 to 100000"),
        (("sample", "--temperature", "hot"), "from 0 to 100"),
        (("sample", "--temperature", "nan"), "from 0 to 100"),
        (("score", "a.npy", "--seed", "-1"), "from 0"),
        ((), "required"),
        (("paint",), "invalid choice"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(
    runs: Path, run: Use, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(runs / "all", *arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("kind", [(), ("x", "sample"), ("x", "score"), ("x", "classify")])
def test_help_describes_every_command(run: Use, capsys: pytest.CaptureFixture[str], kind: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*kind, "--help")
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert ("--seed" in said and "--device" in said) if kind else "runs/train/mnist-lunet-0 sample" in said
