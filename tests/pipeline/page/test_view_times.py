"""Tests of the page's section on time and memory, and of what it says of times elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_results import SMALL, Project, parameters
from parsed_page import Page

from pipeline.page.view import render


def test_time_is_compared_on_one_machine_or_said_not_to_be(page: Page, tmp_path: Path) -> None:
    assert "the validations themselves left out; all on one machine." in page.words
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp"]))
    project.change("evaluate/mnist-lunet-0.json", environment__host="other000")
    project.collect()
    assert "all on one machine" in Page(render(project.reports, "One")).words
    project.change("train/mnist-lunet-0/run.json", environment__host="other000")
    project.collect()
    assert "on 2 machines, so that times cannot be compared." in Page(render(project.reports, "Two")).words


def test_figures_of_another_data_set_s_images_are_called_so(project: Project, page: Page) -> None:
    note = (
        "Fashion-MNIST Not measured again: these are the figures measured on images of MNIST, which have the same size."
    )
    assert page.words.count("Not measured again") == page.words.count(note) == 1
    step = json.loads((project.reports / "timings.json").read_text(encoding="utf-8"))["mnist"]["lunet"]["step_ms"]
    assert page.words.count(f"Training step {step['median']:#.4g}[") == 2


@pytest.mark.parametrize(("cores", "cautious"), [(None, False), (0.12, False), (0.62, True)])
def test_times_say_what_else_was_running(tmp_path: Path, cores: float | None, cautious: bool) -> None:
    project = Project(tmp_path, parameters(**SMALL))
    project.change("measure/mnist-lunet.json", other_cores=cores)
    project.collect()
    words = Page(render(project.reports, "Busy")).words
    assert words.count(f"other programs kept at most {cores} cores busy") == (cores is not None)
    assert words.count(f"Other programs kept at most {cores} cores busy") == cautious


def test_a_time_of_one_process_has_no_interval(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(**SMALL))
    words = []
    for process in ([1] * 8, [1, 1, 1, 2, 2, 2, 3, 3]):
        project.change("measure/mnist-lunet.json", times__step__process=process)
        project.collect()
        words.append(Page(render(project.reports, "Times")).words)
    assert [bool(re.search(r"Training step [\d.]+\[", page)) for page in words] == [False, True]
    assert "n = 8, batch 256" in words[0]
    assert "n = 8 in 3 processes, batch 256" in words[1]
    assert all("median [Student’s t interval, 95 %, over three processes or more]" in page for page in words)


def test_what_is_not_measured_says_how_to_measure_it(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__recipes=["lunet"]))
    project.change("measure/mnist-lunet.json", image_shape=[14, 14])
    project.collect()
    hint = "Nothing was measured on images of this size. To measure them, add fashion_mnist to measure.datasets"
    assert Page(render(project.reports, "Size")).words.count(hint) == 1
    failure = {"status": "out_of_memory", "times": None, "memory": None, "determinant": None}
    project.change("measure/mnist-lunet.json", image_shape=[28, 28], **failure)
    project.collect()
    assert hint not in Page(render(project.reports, "Failed")).words


def test_times_on_a_gpu_have_their_precision_and_the_source_of_memory(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(**SMALL))
    reason = "unknown: the driver does not answer"
    for phase, mib, source in (("training", None, reason), ("sampling", 612.0, "counted by the driver")):
        changes = {"allocated_peak_mib": 77.0, "gpu_process_mib": mib, "gpu_process_source": source}
        project.change("measure/mnist-lunet.json", **{f"memory__{phase}__{key}": x for key, x in changes.items()})
    project.change("measure/mnist-lunet.json", times__step__precision="bfloat16")
    project.change("measure/mnist-realnvp.json", times__step__precision="float32")
    project.collect()
    words = Page(render(project.reports, "GPU")).words
    assert words.count("batch 256, bfloat16") == 1
    assert "batch 256, float32" not in words
    assert f"Training, whole process on the GPU – {reason} –" in words
    assert "Sampling, whole process on the GPU 612 counted by the driver –" in words
