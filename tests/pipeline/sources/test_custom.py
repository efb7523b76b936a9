"""Custom data sets: every kind of source, the refused ones, and the stages, DVC and the report that use them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_results import Project, parameters
from numpy.typing import NDArray
from parsed_page import Page
from png_files import write_png
from ruamel.yaml import YAML

from pipeline import data
from pipeline.core.console import UserError
from pipeline.core.dataset import ARRAYS, load_dataset
from pipeline.core.files import sha256
from pipeline.core.params import read_yaml
from pipeline.data import npy_bytes
from pipeline.page.view import render
from pipeline.presets.merged import load_preset, preset_values
from pipeline.runner.steps import read_steps
from pipeline.sources.custom import read_custom
from pipeline.sources.published import FILES, idx_bytes
from pipeline.training.models import build

ROOT = Path(__file__).parents[3]
Arrays = dict[str, NDArray[Any]]


def small(side: int = 16, classes: int = 3) -> Arrays:
    """Images of every class in both parts, with the labels in order."""
    random = np.random.default_rng(0)
    arrays: Arrays = {}
    for part, each in (("train", 4), ("test", 2)):
        arrays[f"{part}_images"] = random.integers(0, 256, (each * classes, side, side), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.repeat(np.arange(classes), each).astype(np.uint8)
    return arrays


def put_npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    return path.with_suffix(".npz")


def put_idx(path: Path, arrays: Arrays, *, packed: bool = False) -> Path:
    path.mkdir()
    for array, file in zip(ARRAYS, FILES, strict=True):
        content = idx_bytes(arrays[array])
        (path / f"{file}{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)
    return path


def put_pngs(path: Path, arrays: Arrays, names: tuple[str, ...] = ("0", "1", "2")) -> Path:
    for part in ("train", "test"):
        for number, (image, label) in enumerate(zip(arrays[f"{part}_images"], arrays[f"{part}_labels"], strict=True)):
            write_png(path / part / names[label] / f"{number:04}.png", image)
    return path


# Reading


@pytest.mark.parametrize(
    "put", [put_npz, put_idx, lambda path, arrays: put_idx(path, arrays, packed=True), put_pngs],
    ids=["npz", "idx", "gz", "png"],
)  # fmt: skip
def test_every_kind_of_source_gives_the_same_arrays(tmp_path: Path, put: Callable[[Path, Arrays], Path]) -> None:
    arrays, class_names = read_custom(put(tmp_path / "own", small()))
    assert class_names == ("0", "1", "2")
    for array, values in small().items():
        np.testing.assert_array_equal(arrays[array], values)
        assert arrays[array].dtype == np.uint8


def test_folders_name_the_classes_numbers_in_their_order(tmp_path: Path) -> None:
    _, class_names = read_custom(put_pngs(tmp_path / "a", small(), ("shoe", "10", "9")))
    assert class_names == ("9", "10", "shoe")


def test_labels_are_renumbered_from_zero(tmp_path: Path) -> None:
    arrays = small()
    for part in ("train", "test"):
        arrays[f"{part}_labels"] = (10 + 5 * arrays[f"{part}_labels"].astype(np.int64))[:, None]
    loaded, class_names = read_custom(put_npz(tmp_path / "own", arrays))
    assert class_names == ("10", "15", "20")
    np.testing.assert_array_equal(loaded["train_labels"], small()["train_labels"])


# Refusals


def without(array: str) -> Arrays:
    return {name: values for name, values in small().items() if name != array}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (without("test_labels"), "lacks test_labels; a data set of your own is a .npz file"),
        ({**small(), "test_labels": np.zeros(6, np.uint8)}, "no test images of the class 1, 2"),
        ({**small(), "train_labels": np.repeat([0, 1], 6)}, "no train images of the class 2"),
        ({**small(), "train_labels": np.zeros(11, np.uint8)}, "12 train images, but 11 labels"),
        ({**small(), "test_images": small(14)["test_images"]}, "test images are 14x14 pixels, the others 16x16"),
        ({**small(), "train_images": np.zeros((12, 16, 16))}, "train_images is float64, not 8-bit"),
        ({**small(), "train_labels": np.zeros((12, 3), np.uint8)}, r"labels has the shape \(12, 3\)"),
        (small(classes=1), "1 classes; from 2 to 256"),
        (small(66), "66x66 pixels; square ones from 2 to 64"),
        ({name: v[..., :9] if v.ndim == 3 else v for name, v in small().items()}, "9x16 pixels; square"),
    ],
)
def test_arrays_that_no_model_accepts_are_refused(tmp_path: Path, arrays: Arrays, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_custom(put_npz(tmp_path / "own", arrays))


def test_other_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not there; a data set of your own is"):
        read_custom(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"lacks train-images-idx3-ubyte, train-labels"):
        read_custom(tmp_path)
    (tmp_path / "a.tar").touch()
    with pytest.raises(UserError, match=r"a\.tar is no \.npz file"):
        read_custom(tmp_path / "a.tar")
    folder = put_pngs(tmp_path / "pngs", small())
    (folder / "test").rename(folder / "tests")
    with pytest.raises(UserError, match=r"test holds no folders of classes"):
        read_custom(folder)


def test_odd_sides_are_refused_when_a_realnvp_is_built() -> None:
    params = load_preset("smoke")
    with pytest.raises(UserError, match=r"a realnvp cannot take images of 9x9 pixels: .*even height and width"):
        build(params.recipe("realnvp"), (1, 9, 9))
    assert build(params.recipe("lunet"), (1, 9, 9)).shape == (1, 9, 9)


# The data stage


def run_data(monkeypatch: pytest.MonkeyPatch, folder: Path, path: Path, **settings: str) -> None:
    values = preset_values("smoke")
    values["data"]["mine"] = {"path": str(path), **settings}
    with (folder / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(values, stream)
    arguments = ["--dataset", "mine", "--out", str(folder / "data/mine"), "--params", str(folder / "params.yaml")]
    monkeypatch.setattr(sys, "argv", ["data", *arguments])
    data.main()


def test_the_stage_records_checksums_and_follows_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put_npz(tmp_path / "own", small())
    run_data(monkeypatch, tmp_path, path, title="Mine, all mine")
    assert "12 train images, 6 test images of 3 classes" in capsys.readouterr().out
    dataset = load_dataset(tmp_path / "data/mine", "mine")
    assert not dataset.in_paper
    assert (dataset.title, dataset.class_names) == ("Mine, all mine", ("0", "1", "2"))
    assert dataset.info["shape"] == [16, 16]
    assert dataset.info["sha256"] == {f"{array}.npy": sha256(npy_bytes(small()[array])) for array in ARRAYS}
    put_npz(path, {**small(), "train_images": small()["train_images"][::-1]})
    run_data(monkeypatch, tmp_path, path)
    changed = load_dataset(tmp_path / "data/mine")
    assert changed.title == "mine"
    assert changed.info["sha256"]["train_images.npy"] != dataset.info["sha256"]["train_images.npy"]
    assert changed.info["sha256"]["test_images.npy"] == dataset.info["sha256"]["test_images.npy"]


def test_a_path_inside_the_output_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/mine").mkdir(parents=True)
    path = put_npz(tmp_path / "data/mine/own", small())
    with pytest.raises(UserError, match="keep it elsewhere"):
        run_data(monkeypatch, tmp_path, path)
    assert path.is_file()


# DVC


def test_the_steps_without_dvc_depend_on_each_path() -> None:
    values = preset_values("smoke")
    values["data"]["mine"] = {"path": "there/own.npz"}
    steps = {str(step): step for step in read_steps(values, ROOT / "dvc.yaml") if step.stage == "data"}
    assert list(steps) == ["data mnist", "data fashion_mnist", "data mine"]
    assert steps["data mnist"].deps[0] == "pipeline/subset/mnist"
    assert steps["data mine"].deps[0] == "there/own.npz"
    assert steps["data mine"].command == ("python", "-m", "pipeline.data", "--dataset", "mine", "--out", "data/mine")
    assert (steps["data mine"].params, steps["data mine"].outs) == (("data.mine",), ("data/mine",))


def test_dvc_follows_the_content_of_a_path_and_of_nothing_else(tmp_path: Path) -> None:
    graph = read_yaml(ROOT / "dvc.yaml")
    stage = graph["stages"]["data"]["do"]
    stage["cmd"] = "mkdir -p data && touch data/${key}"
    stage["deps"] = stage["deps"][:1]
    values = preset_values("smoke")
    values["data"]["mine"] = {"path": "own.npz"}
    for name, content in (
        ("dvc.yaml", {**graph, "stages": {"data": graph["stages"]["data"]}}),
        ("params.yaml", values),
    ):
        with (tmp_path / name).open("w", encoding="utf-8") as stream:
            YAML(typ="safe", pure=True).dump(content, stream)
    for name in ("mnist", "fashion_mnist"):
        (tmp_path / "pipeline/subset" / name).mkdir(parents=True)
        (tmp_path / "pipeline/subset" / name / "a").touch()
    put_npz(tmp_path / "own", small())

    def dvc(*arguments: str) -> str:
        environment = os.environ | {"DVC_NO_ANALYTICS": "true", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    dvc("init", "--no-scm")
    assert dvc("repro").count("Running stage") == 3
    assert json.loads(dvc("status", "--json")) == {}
    put_npz(tmp_path / "own", {**small(), "test_images": small()["test_images"][::-1]})
    assert list(json.loads(dvc("status", "--json"))) == ["data@mine"]


# Collect and the report


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    values = parameters(
        grid__datasets=["mnist", "mine"], grid__recipes=["lunet", "realnvp"], data__mine={"path": "/home/me/own.npz"}
    )
    project = Project(tmp_path_factory.mktemp("own"), values)
    project.collect()
    return project


def test_it_is_in_metrics_and_tables_but_in_no_claim(project: Project) -> None:
    def read(name: str) -> Any:
        return json.loads((project.reports / name).read_text(encoding="utf-8"))

    assert read("metrics.json")["mine"]["lunet"]["bits_per_dim"]["mean"] == 1.85
    assert read("timings.json")["mine"]["lunet"]
    claims = read("claims.json")
    assert {entry["dataset"] for claim in claims["claims"] for entry in claim["datasets"]} == {"mnist"}
    assert {row["title"] for row in claims["conversion"]["poster"]} == {"MNIST"}
    assert read("provenance.json")["params"]["data"]["mine"] == {"path": "<path>", "title": None}
    assert (project.reports / "figures/likelihood-mine.svg").is_file()


def test_the_page_shows_it_beside_no_poster(project: Project) -> None:
    page = Page(render(project.reports, "t"))
    assert page.words.count("the poster’s table beside ours") == 1
    assert "mine: test bits/dim of each class" in page.words
    assert "12 test images of MNIST and 12 test images of mine" in page.words
    assert "python -m pipeline.data --dataset mine --out data/mine" in page.words


def test_a_grid_without_the_paper_s_data_decides_nothing(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__datasets=["mine"], data__mine={"path": "own.npz"}))
    project.collect()
    claims = json.loads((project.reports / "claims.json").read_text(encoding="utf-8"))["claims"]
    assert {(claim["verdict"], len(claim["datasets"])) for claim in claims} == {("not_tested", 0)}
    assert "10 are not tested" in Page(render(project.reports, "t")).words
