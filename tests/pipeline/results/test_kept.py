"""Tests of the published runs: what they hold, that today's rules judge them, and that damage is one warning."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_results import Project, parameters
from published_run import manifest_of, publish, seal
from workshop import ROOT

from pipeline.core.cell import cells_of
from pipeline.core.files import read_json
from pipeline.core.params import load_params
from pipeline.presets.merged import load_preset
from pipeline.publish import GRIDS, LARGEST
from pipeline.results import verdicts
from pipeline.results.claims import CLAIMS, load_claims
from pipeline.results.kept import read_kept, read_run
from pipeline.results.verdicts import judgements

PUBLISHED = ROOT / "reports/published"
RUNS = sorted(path.parent for path in PUBLISHED.glob("*/manifest.json"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run on both data sets, three seeds, one of which diverged."""
    project = Project(tmp_path_factory.mktemp("run"), parameters(grid__seeds=[0, 1, 2]))
    project.fail("mnist-realnvp-0")
    return project


@pytest.fixture
def published(project: Project, tmp_path: Path) -> Path:
    """The folder of published runs, with one."""
    publish(project, tmp_path, "made-up")
    return tmp_path / "published"


# What the repository keeps


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_published_run_is_small_and_holds_records_and_few_samples(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    names = {path.relative_to(folder).as_posix() for path in files}
    assert names == {"manifest.json", *read_run(folder).manifest.files}  # type: ignore[union-attr]
    derived = [
        name
        for name in names - {"manifest.json", "params.yaml", "runs/mixture.json"}
        if not name.startswith(("runs/train/", "runs/evaluate/", "runs/measure/", "runs/samples/"))
    ]
    assert derived == []


def test_every_published_run_can_be_read_without_the_data() -> None:
    kept, warnings = read_kept(PUBLISHED)
    assert ([run.name for run in kept], warnings) == ([folder.name for folder in RUNS], [])
    overnight = next(run for run in kept if run.name == "overnight-cpu")
    mnist = overnight.results.datasets["mnist"]
    assert (mnist.title, mnist.info["subset"], mnist.in_paper, len(mnist.class_names)) == ("MNIST", False, True, 10)
    assert mnist.test_images.shape == (0, 28, 28)
    assert overnight.subjects["mnist"]["lunet"].metrics["bits_per_dim"] == {0: pytest.approx(1.508, abs=1e-3)}
    assert not any(cell.evaluation.separate_noise for cell in overnight.results.cells)


# Judgements


def judged(folder: Path) -> Any:
    ((run,), warnings) = read_kept(folder)
    assert warnings == []
    return judgements(run.results, load_preset("paper"), run.subjects)


def test_the_records_of_a_run_give_the_verdicts_that_collect_gives(project: Project, published: Path) -> None:
    project.collect()
    claims = read_json(project.reports / "claims.json")["claims"]
    collected = {claim["id"]: claim["verdict"] for claim in claims}
    assert {claim["id"]: claim["verdict"] for claim in judged(published)} == collected
    assert judged(published) == judged(published)
    assert len(set(collected.values())) > 1


def test_a_rule_that_changes_changes_the_verdict_of_a_published_run(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verdict() -> str:
        return next(str(claim["verdict"]) for claim in judged(published) if claim["id"] == "determinant")

    assert verdict() == "replicated"
    before, determinant, after = CLAIMS.read_text(encoding="utf-8").partition("  - id: determinant\n")
    words = {"replicated": "not_replicated", "not_replicated": "replicated"}
    swapped = re.sub(r"\b(replicated|not_replicated): ", lambda match: f"{words[match[1]]}: ", after, count=2)
    (tmp_path / "claims.yaml").write_text(before + determinant + swapped, encoding="utf-8")
    monkeypatch.setattr(verdicts, "load_claims", lambda: load_claims(tmp_path / "claims.yaml"))
    assert verdict() == "not_replicated"


# What is read


def test_cells_without_records_are_unfinished(project: Project, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(project.root, root)
    (root / "runs/train/mnist-lunet-1/run.json").unlink()
    (root / "runs/evaluate/mnist-lunet-1.json").unlink()
    (root / "runs/measure/mnist-gaussian.json").unlink()
    part = Project.__new__(Project)
    part.root, part.params, part.data, part.runs = root, root / "params.yaml", root / "data", root / "runs"
    run = read_run(publish(part, tmp_path, "part"))
    unfinished = {f"{cell.stage} {cell.key}" for cell in run.results.unfinished}
    assert unfinished == {"train mnist-lunet-1", "measure mnist-gaussian"}
    assert list(run.subjects["mnist"]["lunet"].metrics["bits_per_dim"]) == [0, 2]


def test_the_samples_are_those_of_the_first_complete_seed(project: Project, published: Path) -> None:
    names = {path.relative_to(published / "made-up/runs/samples").as_posix() for path in published.rglob("*.png")}
    # Seed 0 of RealNVP diverged.
    expected = {f"{key.dataset}-{key.recipe}-0" for key in cells_of(load_params(project.params))["train"]}
    expected = {name.replace("mnist-realnvp-0", "mnist-realnvp-1") if name[0] == "m" else name for name in expected}
    assert {name.partition("/")[0] for name in names} == expected
    assert {"mnist-lunet-0/samples.png", "mnist-realnvp-1/samples.png"} <= names
    assert {Path(name).stem for name in names} <= set(GRIDS)


def test_other_folders_are_ignored(published: Path, project: Project) -> None:
    publish(project, published.parent, ".half-written")
    (published / "sweeps").mkdir()
    (published / "sweeps/lunet.csv").touch()
    (published / "notes.txt").touch()
    assert [run.name for run in read_kept(published)[0]] == ["made-up"]
    assert read_kept(published / "nowhere") == ([], [])


# Damage


def spoil(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def resealed(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """A change of a file that the manifest agrees to."""

    def damage(folder: Path) -> None:
        spoil(folder, name, change)
        seal(folder)

    return damage


def undescribed(folder: Path) -> None:
    spoil(folder, "manifest.json", lambda manifest: manifest["data"].pop("mnist"))


RUN, EVALUATION = "runs/train/mnist-lunet-0/run.json", "runs/evaluate/mnist-lunet-0.json"
HISTORY = "runs/train/mnist-lunet-0/history.csv"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is gone": (lambda folder: (folder / EVALUATION).unlink(), f"{EVALUATION} is missing"),
    "a file is cut": (lambda folder: (folder / HISTORY).write_text("model"), f"{HISTORY} is not what was published"),
    "the manifest is gone": (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
    "the manifest is cut": (
        lambda folder: (folder / "manifest.json").write_text('{"commit": ', encoding="utf-8"),
        "manifest.json: the file: is ",
    ),
    "the manifest is a list": (
        lambda folder: (folder / "manifest.json").write_text("[]", encoding="utf-8"),
        "manifest.json: the file: is []",
    ),
    "the manifest is of another format": (lambda folder: seal(folder, format=2), "format: is 2; input should be 3"),
    "a cell is not in the manifest": (lambda folder: seal(folder, cells=[]), "json describes other cells than"),
    "a data set is not described": (undescribed, "manifest.json does not describe the data of mnist"),
    "a number": (
        resealed(EVALUATION, lambda record: record["test"]["bits_per_dim"].update(mean=float("nan"))),
        f"{EVALUATION}: test.bits_per_dim.mean: is nan; input should be a finite number",
    ),
    "another recipe": (resealed(RUN, lambda record: record.update(recipe_params={})), "with other parameters"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_run_that_cannot_be_read_is_one_warning(project: Project, published: Path, name: str) -> None:
    damage, reason = DAMAGES[name]
    damage(publish(project, published.parent, "broken"))
    runs, (warning,) = read_kept(published)
    assert [run.name for run in runs] == ["made-up"]
    assert warning.startswith("The published run broken cannot be read: ")
    assert reason in warning
    assert str(published) not in warning
    assert "python -m pipeline.publish ARCHIVE broken --replace" in warning


def test_damage_of_any_file_is_a_warning(published: Path) -> None:
    folder = published / "made-up"
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        runs, warnings = read_kept(published)
        assert (runs, len(warnings)) == ([], 1), path
        path.write_bytes(content)
    assert len(manifest_files := read_run(folder).manifest.files) > 20  # type: ignore[union-attr]
    assert "params.yaml" in manifest_files


def test_a_run_says_which_data_it_is_of(project: Project) -> None:
    data = manifest_of(project).data["mnist"]
    assert data.sha256 == read_json(project.data / "mnist/dataset.json")["sha256"]
    assert (data.title, data.shape, data.subset) == ("MNIST", (28, 28), False)
