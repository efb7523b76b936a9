"""The number of fitted models and the compute behind the kept figures."""

from __future__ import annotations

import json
import shutil
from dataclasses import astuple
from pathlib import Path

import pytest
from fake_results import Project, parameters
from parsed_page import Page

from pipeline.page.effort import Effort, read_effort
from pipeline.page.view import render


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Six trainings of 7.5 s, RealNVP's of three models, six evaluations of 1 s, two measurements of 60 s, and 9 s."""
    changes = {"grid__recipes": ["lunet", "realnvp"], "recipes__realnvp__classes": "each"}
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__seeds=[0, 1, 2], **changes))
    for recipe in ("lunet", "realnvp"):
        project.change(f"measure/mnist-{recipe}.json", seconds=60.0)
    project.collect()
    return project


def efforts(project: Project) -> dict[str, Effort]:
    provenance = json.loads((project.reports / "provenance.json").read_text(encoding="utf-8"))
    return {effort.name: effort for effort in read_effort(project.reports, provenance)}


def publish_records(project: Project, name: str) -> Path:
    runs = project.reports / "published" / name / "runs"
    shutil.copytree(project.runs, runs)
    return runs


def test_a_published_run_takes_what_the_same_run_takes_here(project: Project) -> None:
    publish_records(project, "same")
    found = efforts(project)
    assert found["This run"].models == found["same"].models == 3 + 3 * 3
    assert found["This run"].cpu_hours == pytest.approx(found["same"].cpu_hours, rel=1e-5)
    record = json.loads((project.runs / "train/mnist-lunet-0/run.json").read_text(encoding="utf-8"))
    assert found["same"].cpu_hours * 3600 == pytest.approx((6 * 8.5 + 2 * 60 + 9) * record["environment"]["threads"])
    assert found["same"].gpu_hours == 0


def test_a_measurement_of_an_older_run_adds_nothing(project: Project) -> None:
    runs = publish_records(project, "older")
    path = runs / "measure/mnist-lunet.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    before = efforts(project)["older"].cpu_hours
    path.write_text(json.dumps(record | {"seconds": None}), encoding="utf-8")
    after = efforts(project)["older"].cpu_hours
    assert after == pytest.approx(before - 60 * record["environment"]["threads"] / 3600)


def test_hours_on_a_gpu_are_apart_and_a_thread_counts_for_itself(project: Project) -> None:
    runs = publish_records(project, "gpu")
    before = efforts(project)["gpu"].cpu_hours
    path = runs / "train/mnist-lunet-0/run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    threads = record["environment"]["threads"]
    record["environment"] |= {"device": "cuda"}
    path.write_text(json.dumps(record | {"seconds": 7200.0}), encoding="utf-8")
    after = efforts(project)["gpu"]
    assert after.gpu_hours == 2
    assert after.cpu_hours == pytest.approx(before - 7.5 * threads / 3600)


def test_tables_of_trainings_count_and_what_is_damaged_does_not(project: Project) -> None:
    for name in ("sweeps", "benchmarks"):
        (project.reports / "published" / name).mkdir(parents=True)
    published = project.reports / "published"
    rows = "seconds,threads,device\n1800,2,cpu\n,2,cpu\n3600,1,cuda\n"
    (published / "sweeps/lunet.csv").write_text(rows, encoding="utf-8")
    (published / "sweeps/margin.csv").write_text("seconds\nmany\n", encoding="utf-8")
    (published / "benchmarks/precision.csv").write_text("seconds,threads\n7200,1\n", encoding="utf-8")
    (publish_records(project, "broken") / "evaluate/mnist-lunet-0.json").write_text("{", encoding="utf-8")
    found = efforts(project)
    assert [*found] == ["This run", "sweeps/lunet", "benchmarks/precision", "Together"]
    assert astuple(found["sweeps/lunet"])[1:] == (3, 1, 1)
    assert astuple(found["benchmarks/precision"])[1:] == (1, 2, 0)
    assert found["Together"].models == found["This run"].models + 4
    assert found["Together"].cpu_hours == pytest.approx(found["This run"].cpu_hours + 3)


def test_the_page_shows_it(project: Project) -> None:
    (project.reports / "published/sweeps").mkdir(parents=True)
    (project.reports / "published/sweeps/lunet.csv").write_text(
        "seconds,threads,device\n1800,2,cpu\n", encoding="utf-8"
    )
    words = Page(render(project.reports, "Compute")).words
    assert "sweeps/lunet 1 1.00 0.00" in words
    assert "Together 13 " in words
