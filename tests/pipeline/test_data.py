"""The data stage: every source gives the same bytes, and failures lose no data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from custom_data import put_npz, small
from idx_sources import contents, write_idx_files
from ruamel.yaml import YAML

from pipeline import data
from pipeline.core.console import UserError
from pipeline.core.dataset import ARRAYS, load_dataset
from pipeline.core.files import sha256
from pipeline.core.params import read_yaml
from pipeline.data import npy_bytes
from pipeline.presets.merged import preset_values
from pipeline.runner.steps import read_steps
from pipeline.sources.published import FILES, ORIGINS, idx_bytes

ROOT = Path(__file__).parents[2]

Stage = Callable[..., None]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Run the stage in this process, with one source for both data sets."""

    def run(out: Path, source: str, folder: Path | None = None, name: str = "mnist") -> None:
        values = preset_values("laptop")
        values["data"] = {key: {"source": source, "folder": folder and str(folder)} for key in ORIGINS}
        params = tmp_path / "params.yaml"
        with params.open("w", encoding="utf-8") as stream:
            YAML(typ="safe", pure=True).dump(values, stream)
        monkeypatch.setattr(sys, "argv", ["data", "--dataset", name, "--out", str(out), "--params", str(params)])
        data.main()

    return run


def test_same_bytes_from_every_layout(tmp_path: Path, idx_files: dict[str, bytes], stage: Stage) -> None:
    stage(tmp_path / "plain", "folder", write_idx_files(tmp_path / "a", idx_files))
    stage(tmp_path / "packed", "auto", write_idx_files(tmp_path / "b", idx_files, packed=True))
    write_idx_files(tmp_path / "c" / "MNIST" / "raw", idx_files)
    stage(tmp_path / "torchvision", "folder", tmp_path / "c")
    assert contents(tmp_path / "plain") == contents(tmp_path / "packed") == contents(tmp_path / "torchvision")


@pytest.mark.parametrize("name", list(ORIGINS))
def test_bundled_subset(tmp_path: Path, stage: Stage, name: str) -> None:
    stage(tmp_path / "out", "bundled", name=name)
    dataset = load_dataset(tmp_path / "out")
    assert dataset.name == name
    assert dataset.info["subset"] is True
    assert dataset.info["idx_sha256"] == ORIGINS[name].subset_checksums
    assert dataset.train_images.shape == (1000, 28, 28)
    assert dataset.test_images.shape == (200, 28, 28)
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), np.full(10, 100))
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), np.full(10, 20))
    assert dataset.info["train_per_class"] == {str(label): 100 for label in range(10)}
    assert len(dataset.class_names) == 10


def test_description(tmp_path: Path, idx_files: dict[str, bytes], stage: Stage) -> None:
    stage(tmp_path / "out", "folder", write_idx_files(tmp_path / "data", idx_files), name="fashion_mnist")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.title == "Fashion-MNIST"
    assert dataset.class_names[9] == "Ankle boot"
    assert dataset.info["subset"] is False
    assert dataset.info["shape"] == [28, 28]
    assert (dataset.info["train"], dataset.info["test"]) == (20, 10)
    assert dataset.info["test_per_class"] == {str(label): 1 for label in range(10)}
    for file, array in zip(FILES, ARRAYS, strict=True):
        assert idx_bytes(getattr(dataset, array)) == idx_files[file]
        assert getattr(dataset, array).flags.writeable


def test_verified_data_are_not_fetched_again(
    tmp_path: Path, idx_files: dict[str, bytes], stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    folder = write_idx_files(tmp_path / "data", idx_files)
    stage(out, "folder", folder)
    stage(out, "folder", tmp_path / "absent")
    assert "nothing fetched" in capsys.readouterr().out
    (out / "test_labels.npy").write_bytes(b"tampered")
    stage(out, "folder", folder)
    assert load_dataset(out).info["test"] == 10
    stage(out, "bundled")
    assert load_dataset(out).info["test"] == 200


def test_failure_leaves_nothing_and_spoils_nothing(tmp_path: Path, idx_files: dict[str, bytes], stage: Stage) -> None:
    out = tmp_path / "out" / "mnist"
    with pytest.raises(UserError):
        stage(out, "folder", tmp_path / "absent")
    assert not out.exists()
    stage(out, "folder", write_idx_files(tmp_path / "data", idx_files))
    (out / "test_labels.npy").write_bytes(b"tampered")
    before = contents(out)
    with pytest.raises(UserError):
        stage(out, "folder", tmp_path / "absent")
    assert contents(out) == before
    assert list(out.parent.iterdir()) == [out]


def test_failure_while_writing_leaves_the_old_data(
    tmp_path: Path, idx_files: dict[str, bytes], stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "mnist"
    stage(out, "bundled")
    before = contents(out)

    def full_disk(*arguments: object, sealed: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "write_json", full_disk)
    with pytest.raises(UserError, match="No space left"):
        stage(out, "folder", write_idx_files(tmp_path / "data", idx_files))
    assert contents(out) == before
    assert list(out.parent.iterdir()) == [out]


def test_foreign_folder_is_not_replaced(tmp_path: Path, stage: Stage) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="something else than this stage writes"):
        stage(tmp_path, "bundled")
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--dataset", "cifar", "--out", "x", "--params", str(ROOT / "params.yaml")],
            "data has: mnist, fashion_mnist",
        ),
        (["--dataset", "mnist", "--out", "x", "--params", "absent.yaml"], "absent.yaml is missing"),
    ],
)
def test_mistakes_give_no_traceback(tmp_path: Path, arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", "pipeline.data", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_damaged_array_is_refused(tmp_path: Path, stage: Stage, damage: str) -> None:
    stage(tmp_path / "out", "bundled")
    path = tmp_path / "out" / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "changed" else content[:-1])
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=r"train_images\.npy .*dvc repro -f -s data"):
        load_dataset(tmp_path / "out")


def test_reading_data_needs_no_torch() -> None:
    code = "import sys, pipeline.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# Custom data sets


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
