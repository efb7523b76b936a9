"""Fixtures that several test files of the pipeline share."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fake_results import SMALL, Project, parameters, with_failures
from idx_sources import replace_mirrors
from parsed_page import HOSTILE, Page
from runner_calls import work
from workshop import PYTHONPATH, Workshop

from pipeline.core.console import UserError
from pipeline.core.dataset import Dataset
from pipeline.core.params import Params, validate
from pipeline.page.view import render
from pipeline.presets.merged import preset_values
from pipeline.sources import published as sources
from pipeline.sources.published import FILES, ORIGINS, idx_bytes

if TYPE_CHECKING:
    from pretend_tensors import Counts


@pytest.fixture
def smoke_values() -> Any:
    """The values of the smoke preset, cut to a few steps."""
    values = preset_values("smoke")
    for name in ("lunet", "lunet_learned", "realnvp"):
        values["recipes"][name]["training"] |= {"epochs": 1, "batch_size": 32, "validations": 2}
    return values


@pytest.fixture
def params(smoke_values: Any) -> Params:
    return validate(smoke_values, "params.yaml")


@pytest.fixture
def dataset() -> Dataset:
    """Two classes of 8x8 images: a bright left half, and a bright right half."""
    random = np.random.default_rng(0)

    def images(count: int) -> tuple[Any, Any]:
        labels = np.arange(count, dtype=np.uint8) % 2
        shade = np.where((np.arange(8) < 4) == (labels[:, None, None] == 0), 200, 40) + np.zeros((count, 8, 8))
        return (shade + random.integers(-30, 30, shade.shape)).astype(np.uint8), labels

    (train_images, train_labels), (test_images, test_labels) = images(400), images(100)
    return Dataset("halves", "Halves", ("left", "right"), train_images, train_labels, test_images, test_labels, {})


@pytest.fixture
def two_classes() -> Dataset:
    """Two classes of 4x4 images, dark and bright, in turn."""
    random = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.uint8) % 2
    images = (100 * labels[:, None, None] + random.integers(20, 90, (60, 4, 4))).astype(np.uint8)
    return Dataset("two", "Two", ("dark", "bright"), images[:40], labels[:40], images[40:], labels[40:], {})


@pytest.fixture
def idx_files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The IDX files of 20 + 10 images, which both data sets now consist of; no installed copy or mirror exists."""
    random = np.random.default_rng(0)
    contents = {}
    for file in FILES:
        count = 20 if file.startswith("train") else 10
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        contents[file] = idx_bytes(images if "images" in file else np.arange(count, dtype=np.uint8) % 10)
    checksums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    for name, origin in list(ORIGINS.items()):
        monkeypatch.setitem(ORIGINS, name, dataclasses.replace(origin, checksums=checksums))
    monkeypatch.setattr(sources, "installed_folders", lambda folder: [])
    replace_mirrors(monkeypatch, "file:///nowhere/")
    return contents


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three seeds; one RealNVP diverged with a message that contains markup."""
    project = Project(tmp_path_factory.mktemp("report"), parameters(grid__seeds=[0, 1, 2]))
    project.fail("mnist-realnvp-1", message=HOSTILE)
    project.change("measure/mnist-realnvp.json", environment__host="other000")
    project.collect()
    return project


@pytest.fixture(scope="module")
def html(project: Project) -> str:
    return render(project.reports, "Does it hold?")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = with_failures(tmp_path_factory.mktemp("whole"))
    project.collect()
    return project


@pytest.fixture
def small_project(tmp_path: Path) -> Project:
    return Project(tmp_path, parameters(**SMALL))


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    shop = Workshop(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    return shop


@pytest.fixture(scope="module")
def packed_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of a run in which one evaluation failed."""
    with pytest.MonkeyPatch.context() as patch:
        shop = Workshop(tmp_path_factory.mktemp("packed"), data__mnist__folder="/home/someone/data")
        patch.chdir(shop.folder)
        patch.setenv("PYTHONPATH", PYTHONPATH)
        shop.fault("evaluate mnist-realnvp-0", 3)
        with pytest.raises(UserError, match="5 of 6 cells done"):
            work(out="a")
        return shop.folder / "a/run.tar.gz"


@pytest.fixture
def quick_marginals(monkeypatch: pytest.MonkeyPatch) -> None:
    """An LU-Net's marginals are fitted in few steps."""
    monkeypatch.setattr("lunet.marginals.FIRST_STEPS", 2)
    monkeypatch.setattr("lunet.marginals.STEPS", 2)


@pytest.fixture
def gpu(quick_marginals: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    """A pretend GPU without graphs, and what happens on it."""
    from pretend_cuda import pretend_cuda  # here, since many tests need no torch

    from pipeline.training import capture

    monkeypatch.setattr(capture, "runs_graphs", lambda _: False)
    with pretend_cuda() as counts:
        yield counts


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
