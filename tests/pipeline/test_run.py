"""The runner without DVC: the order of the cells, finished cells, time limits, and resuming."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from import_graph import reachable
from runner_calls import without_report, work
from workshop import ROOT, Workshop, write_yaml

from pipeline import run
from pipeline.core.console import UserError
from pipeline.core.params import read_yaml
from pipeline.presets.merged import load_preset, preset_text, preset_values
from pipeline.run import CELLS, in_order
from pipeline.runner.archive import unpack
from pipeline.runner.steps import read_steps

ALL = [
    "measure mnist-lunet",
    "measure mnist-realnvp",
    "train mnist-lunet-0",
    "evaluate mnist-lunet-0",
    "train mnist-realnvp-0",
    "evaluate mnist-realnvp-0",
]


def content(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


class Clock:
    """A clock that stands still until a stage hangs, and then jumps ahead."""

    sleep = staticmethod(time.sleep)

    @staticmethod
    def monotonic() -> float:
        return 1000.0 if Path("hanging").exists() else 0.0


def test_the_most_valuable_cells_come_first() -> None:
    values = preset_values("paper")
    values["grid"]["seeds"] = [3, 1]
    write = [step for step in read_steps(values, ROOT / "dvc.yaml") if step.stage in CELLS]
    params = load_preset("paper")
    params = params.model_copy(update={"grid": params.grid.model_copy(update={"seeds": [3, 1]})})
    names = [str(step) for step in in_order(reversed(write), params)]
    assert len(names) == len(write)
    assert names[:2] == ["measure mnist lunet", "measure mnist realnvp"]
    first = ("mnist lunet 3", "mnist lunet_released 3")
    assert names[2:6] == [f"{stage} {cell}" for cell in first for stage in ("train", "evaluate")]
    trained = [name for name in names if name.startswith("train")]
    places = [trained.index(name) for name in (
        "train fashion_mnist lunet_released 3", "train mnist realnvp 3", "train fashion_mnist realnvp 3",
        "train mnist realnvp_released 3", "train fashion_mnist realnvp_released 3", "train mnist lunet_learned 3",
    )]  # fmt: skip
    assert places == sorted(places)
    first_of_second = min(names.index(name) for name in names if name.endswith(" 1"))
    assert all(name.endswith(" 1") for name in names[first_of_second:])


def test_the_runner_needs_neither_dvc_nor_files_that_the_readme_does_not_list() -> None:
    there = {"torch", "torchvision", "numpy", "pandas", "matplotlib", "jinja2", "scipy", "psutil", "tqdm"}
    # Pillow comes with matplotlib.
    there |= {"safetensors", "filelock", "pynvml", "markupsafe", "PIL"}
    carried = {"pydantic", "ruamel"}
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    modules = [Path("pipeline", f"{name}.py") for name in ("run", "publish", "preset", *stages)]
    names = set()
    for path in set().union(*map(reachable, modules)):
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    assert {"torch", "pydantic", "jinja2"} <= names
    assert names - set(sys.stdlib_module_names) - {"lunet", "pipeline"} - there - carried == set()


def test_a_run_is_in_order_and_a_second_one_does_nothing(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    without_report(workshop)
    assert work() == 0
    assert workshop.done() == ALL
    assert work() == 0
    assert workshop.done() == []
    assert capfd.readouterr().out.splitlines()[-1] == "all 6 cells are done"


def test_the_mixture_runs_once_and_again_when_its_file_is_missing(workshop: Workshop) -> None:
    without_report(workshop)
    assert work() == 0
    path = Path("runs/mixture.json")
    made = path.stat().st_mtime_ns
    assert work() == 0
    assert path.stat().st_mtime_ns == made
    Path("runs/mixture.npy").unlink()
    assert work() == 0
    assert Path("runs/mixture.npy").exists()
    assert path.stat().st_mtime_ns > made
    Path("runs/mixture.npy").unlink()
    workshop.fault("mixture mixture", 3)
    with pytest.raises(UserError, match="the stage mixture failed"):
        work()


TRAINED = [cell for cell in ALL if "measure" not in cell]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda shop: shop.change("evaluate.draws", 3), [cell for cell in ALL if "evaluate" in cell]),
        (lambda shop: shop.change("measure.warmup", 4), [cell for cell in ALL if "measure" in cell]),
        (lambda shop: shop.change("deterministic", True), TRAINED),
        (lambda shop: shop.change("report.title", "Another"), []),
        (lambda shop: shop.change("recipes.realnvp.training.epochs", 0.5), [cell for cell in ALL if "realnvp" in cell]),
        (lambda shop: (shop.folder / "code.py").write_text("second"), ["train mnist-lunet-0", "train mnist-realnvp-0"]),
        (lambda shop: (shop.folder / "data/mnist/new.npy").touch(), ALL),
        (lambda shop: (shop.folder / "runs/train/mnist-lunet-0/history.csv").write_text("x"), ["train mnist-lunet-0"]),
        (lambda shop: (shop.folder / "runs/train/mnist-lunet-0/run.json").unlink(), ["train mnist-lunet-0"]),
        (lambda shop: (shop.folder / "runs/samples/mnist-lunet-0/samples.npy").unlink(), ["evaluate mnist-lunet-0"]),
        (lambda shop: (shop.folder / "runs/measure/mnist-lunet.json").write_text("{}"), ["measure mnist-lunet"]),
        (lambda shop: (shop.folder / "runs/done/measure/mnist-lunet.json").write_text("{}"), ["measure mnist-lunet"]),
    ],
)  # fmt: skip
def test_a_change_repeats_exactly_the_affected_steps(workshop: Workshop, change: Any, again: list[str]) -> None:
    without_report(workshop)
    assert work() == 0
    workshop.done()
    change(workshop)
    assert work() == 0
    assert workshop.done() == again
    assert work() == 0
    assert workshop.done() == []


def test_weights_may_be_missing_only_after_their_evaluation(workshop: Workshop) -> None:
    without_report(workshop)
    assert work() == 0
    workshop.done()
    weights = Path("runs/train/mnist-lunet-0/flows/all/weights.safetensors")
    weights.unlink()
    assert work() == 0
    assert workshop.done() == []
    Path("runs/evaluate/mnist-lunet-0.json").unlink()
    assert work() == 0
    assert workshop.done() == ["train mnist-lunet-0", "evaluate mnist-lunet-0"]
    weights.write_bytes(b"others")
    assert work() == 0
    assert workshop.done() == ["train mnist-lunet-0"]


def test_the_time_limit_stops_the_training_and_finished_cells_are_reported(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "time", Clock)
    workshop.fault("train mnist-realnvp-0", "hang")
    assert work(deadline=100, archive="part.tar.gz") == run.TIME_IS_UP
    assert Path("stopped").exists()
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "4 of 6 cells done; run the same command again"
    assert not [line for line in lines if "warning" in line]
    metrics = content("reports/metrics.json")["mnist"]
    assert metrics["lunet"]["bits_per_dim"]["mean"] == pytest.approx(1.85)
    assert metrics["realnvp"] == {}
    # Measured all the same.
    assert content("reports/timings.json")["mnist"]["realnvp"]["step_ms"]["n"] == 8
    claims = {claim["id"]: claim["datasets"][0] for claim in content("reports/claims.json")["claims"]}
    assert claims["nll"]["verdict"] == "not_tested"
    assert claims["nll"]["sentence"] == "Seed 0 of realnvp: partial."
    page = Path("reports/index.html").read_text(encoding="utf-8")
    assert "1 cell of the grid did not finish" in " ".join(re.sub("<.*?>", "", page).split())
    assert "stopped after 12.5 of 0.3 epochs" in page
    manifest = unpack(Path("part.tar.gz"), tmp_path / "unpacked")
    cells = {f"{cell.stage} {cell.key}": cell for cell in manifest.cells}
    partial = cells["train mnist-realnvp-0"]
    assert (partial.status, partial.epochs, partial.planned_epochs) == ("partial", {"all": 12.5}, 0.3)
    assert cells["evaluate mnist-realnvp-0"].status == "missing"
    whole = cells["train mnist-lunet-0"]
    assert (whole.status, whole.epochs, whole.planned_epochs) == ("complete", {"all": 3.0}, 4.0)
    assert not [name for name in manifest.files if "realnvp-0" in name]

    Path("hanging").unlink()
    workshop.fault("nothing", 0)
    workshop.done()
    assert work(deadline=100, archive="all.tar.gz") == 0
    assert workshop.done() == ["train mnist-realnvp-0", "evaluate mnist-realnvp-0"]
    assert content("reports/metrics.json")["mnist"]["realnvp"]["bits_per_dim"]["mean"] == pytest.approx(1.45)
    assert {cell.status for cell in unpack(Path("all.tar.gz"), tmp_path / "whole").cells} == {"complete"}


def test_files_of_an_older_run_are_not_results_of_an_unfinished_cell(workshop: Workshop) -> None:
    graph = Path("dvc.yaml").read_bytes()
    without_report(workshop)
    assert work() == 0
    Path("dvc.yaml").write_bytes(graph)
    workshop.change("evaluate.draws", 3)
    workshop.fault("evaluate mnist-realnvp-0", 7)
    with pytest.raises(UserError, match=r"5 of 6 cells done; failed, .*: evaluate mnist realnvp 0 \(exit status 7\)"):
        work(archive="part.tar.gz")
    assert Path("runs/evaluate/mnist-realnvp-0.json").exists()
    assert content("reports/metrics.json")["mnist"]["realnvp"] == {}
    (status,) = [cell for cell in content("reports/provenance.json")["cells"] if cell["status"] != "complete"]
    assert (status["stage"], status["status"], status["message"]) == ("evaluate", "failed", "exit status 7")


def test_a_failed_cell_does_not_stop_the_others(workshop: Workshop) -> None:
    without_report(workshop)
    workshop.fault("train mnist-lunet-0", 1)
    with pytest.raises(UserError, match="4 of 6 cells done; failed"):
        work()
    assert workshop.done() == [cell for cell in ALL if cell != "evaluate mnist-lunet-0"]


def test_a_data_set_that_is_only_measured_has_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(tmp_path, grid__datasets=["fashion_mnist"], grid__recipes=["lunet"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    graph = read_yaml(tmp_path / "dvc.yaml")
    graph["stages"]["data"]["do"]["cmd"] = "touch ${key}"
    write_yaml(tmp_path / "dvc.yaml", graph)
    assert work(archive="a.tar.gz") == 0
    assert shop.done() == ["measure mnist-lunet", "train fashion_mnist-lunet-0", "evaluate fashion_mnist-lunet-0"]
    assert Path("mnist").exists()
    assert unpack(Path("a.tar.gz"), tmp_path / "unpacked").cells[0].dataset == "mnist"
    assert content("unpacked/timings.json")["fashion_mnist"]["lunet"]["step_ms"]["n"] == 8


def test_a_failed_data_stage_stops_the_run(workshop: Workshop) -> None:
    graph = read_yaml(workshop.folder / "dvc.yaml")
    graph["stages"]["data"]["do"]["cmd"] = 'python -c "raise SystemExit(1)"'
    write_yaml(workshop.folder / "dvc.yaml", graph)
    with pytest.raises(UserError, match="data mnist failed"):
        work()
    assert workshop.done() == []


def test_a_measurement_that_exceeds_the_limit_is_reported_and_blocks_no_other_cell(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "time", Clock)
    without_report(workshop)
    workshop.fault("measure mnist-lunet", "hang")
    # It has the first turn, then the last one, and is given up when it was given all the time there is.
    for done in (ALL[:1], [*ALL[1:], ALL[0]]):
        assert work(deadline=100) == run.TIME_IS_UP
        assert workshop.done() == done
        Path("hanging").unlink()
    with pytest.raises(UserError, match="measure mnist lunet needs more time"):
        work(deadline=100)


def test_of_the_stopped_cells_the_one_that_waited_longest_comes_first(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "time", Clock)
    without_report(workshop)
    for recipe in ("lunet", "realnvp", "lunet"):
        workshop.fault(f"measure mnist-{recipe}", "hang")
        assert work(deadline=100) == run.TIME_IS_UP
        Path("hanging").unlink()
    workshop.done()
    workshop.fault("nothing", 0)
    assert work(deadline=100) == 0
    assert workshop.done() == ["measure mnist-realnvp", "measure mnist-lunet"]


def test_no_cell_begins_shortly_before_the_time_limit(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "time", Clock)
    assert work(deadline=run.WORTHWHILE - 1) == run.TIME_IS_UP
    assert workshop.done() == []


def wait_for(path: Path) -> None:
    """Wait until a stage hangs."""
    while not path.exists():
        time.sleep(0.02)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX systems have them")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_runner_alone_reaches_the_training_and_the_next_call_goes_on(
    workshop: Workshop, number: signal.Signals
) -> None:
    without_report(workshop)
    workshop.fault("train mnist-realnvp-0", "hang")
    process = workshop.start()
    wait_for(workshop.folder / "hanging")
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}: train mnist realnvp 0 is not done" in output.splitlines()[-1]
    assert (workshop.folder / "stopped").exists()
    workshop.fault("nothing", 0)
    workshop.done()
    assert workshop.run()[0] == 0
    assert workshop.done() == ["train mnist-realnvp-0", "evaluate mnist-realnvp-0"]


@pytest.mark.skipif(os.name != "posix", reason="a group of processes is killed as POSIX systems do")
def test_after_a_kill_no_finished_cell_runs_again(workshop: Workshop) -> None:
    without_report(workshop)
    workshop.fault("train mnist-lunet-0", "hang")
    process = workshop.start()
    wait_for(workshop.folder / "hanging")
    assert "another python -m pipeline.run is at work" in workshop.run()[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert workshop.done() == ALL[:3]
    workshop.fault("nothing", 0)
    assert workshop.run()[0] == 0
    assert workshop.done() == ALL[2:]


def test_a_time_limit_that_is_too_short_is_refused(workshop: Workshop) -> None:
    # Time to collect and to render is needed with an archive and without.
    for archive in ([], ["--pack", "x.tar.gz"]):
        status, output = workshop.run("--time-limit", "80", *archive)
        assert status == 1
        assert output == "error: --time-limit must be at least 90 seconds\n"


def test_the_paper_preset_stops_at_once_without_a_gpu(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    (workshop.folder / "params.yaml").write_bytes(preset_text("paper").encode())
    (workshop.folder / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    status, output = workshop.run()
    assert status == 1
    assert "the preset 'paper' needs a CUDA GPU" in output
    assert "train" not in output
    assert workshop.done() == []
