"""The runner without DVC: the order of the cells, finished cells, time limits, and resuming."""

from __future__ import annotations

import ast
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_stage import play
from import_graph import reachable
from runner_calls import ALL, cells_in, without_report, work
from workshop import PYTHONPATH, ROOT, Workshop, write_yaml

from pipeline import run
from pipeline.core.console import UserError
from pipeline.core.params import read_yaml
from pipeline.presets.merged import preset_text
from pipeline.run import Runner, TimeIsUpError
from pipeline.runner.plan import PACKING, SHORTEST, STOPPING, WORTHWHILE
from pipeline.runner.steps import Ledger, Step


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
    assert capfd.readouterr().out.splitlines()[-1].endswith("] all 6 cells are done")


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
    with pytest.raises(UserError, match=r"failed, .*: mixture \(exit status 3\)"):
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


def test_the_time_limit_stops_the_training_and_the_archive_has_what_is_done(
    workshop: Workshop, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    workshop.fault("train mnist-realnvp-0", "hang")
    assert work(100, "part", jump=60) == run.TIME_IS_UP
    assert Path("stopped").exists()
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "[  60 s] 4 of 6 cells done; run the same command again"
    assert [line for line in lines if "packed 4 of 6 cells" in line]
    assert not [line for line in lines if "warning" in line]
    cells = cells_in("part/run.tar.gz", tmp_path / "unpacked")
    stopped = cells["train mnist-realnvp-0"]
    assert (stopped.status, stopped.message) == ("missing", "begun, and not finished")
    assert (cells["evaluate mnist-realnvp-0"].status, cells["evaluate mnist-lunet-0"].status) == ("missing", "complete")
    whole = cells["train mnist-lunet-0"]
    assert (whole.status, whole.epochs, whole.planned_epochs) == ("complete", {"all": 3.0}, 4.0)
    assert not [*(tmp_path / "unpacked").rglob("*realnvp-0*")]

    Path("hanging").unlink()
    workshop.fault("nothing", 0)
    workshop.done()
    assert work(100, "part") == 0
    assert workshop.done() == ["train mnist-realnvp-0", "evaluate mnist-realnvp-0"]
    assert {cell.status for cell in cells_in("part/run.tar.gz", tmp_path / "whole").values()} == {"complete"}


@pytest.fixture
def per_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A workshop whose RealNVP has a model for each of three classes."""
    shop = Workshop(tmp_path, recipes__realnvp__classes="each")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    return shop


def test_the_finished_classes_of_a_stopped_training_come_home_and_the_next_call_goes_on(
    per_class: Workshop, tmp_path: Path
) -> None:
    per_class.fault("train mnist-realnvp-0", "hang")
    for finished in (1, 2):
        per_class.finished(finished)
        assert work(100, "home", jump=60) == run.TIME_IS_UP
        cells = cells_in("home/run.tar.gz", tmp_path / str(finished))
        for stage in ("train", "evaluate"):
            cell = cells[f"{stage} mnist-realnvp-0"]
            assert (cell.status, cell.message) == ("partial", f"{finished} of 3 classes trained")
        Path("hanging").unlink()
    per_class.fault("nothing", 0)
    per_class.done()
    assert work(100, "home") == 0
    assert per_class.done() == ["train mnist-realnvp-0", "evaluate mnist-realnvp-0"]
    assert cells_in("home/run.tar.gz", tmp_path / "whole")["evaluate mnist-realnvp-0"].status == "complete"


def test_a_partial_cell_stays_in_the_archive_while_its_training_goes_on(per_class: Workshop, tmp_path: Path) -> None:
    per_class.fault("train mnist-realnvp-0", "hang")
    per_class.finished(2)
    assert work(100, "home", jump=60) == run.TIME_IS_UP
    Path("hanging").unlink()
    Path("runs/measure/mnist-lunet.json").unlink()
    # The measurement is packed before the training is stopped without anything to write.
    per_class.finished(0)
    assert work(100, "home", jump=60) == run.TIME_IS_UP
    assert cells_in("home/run.tar.gz", tmp_path / "unpacked")["evaluate mnist-realnvp-0"].status == "partial"


class Killed(BaseException):
    """The process is killed."""


MOMENTS = 38  # of the run below


def at_once(step: Step, *options: str) -> int:
    return 0 if step.stage == "data" else play(step.stage, str(step.key) if step.item else "mixture", *options)


@pytest.mark.parametrize("moment", range(1, MOMENTS + 2))
def test_a_kill_at_any_moment_leaves_a_valid_archive_from_which_another_call_goes_on(
    per_class: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: int
) -> None:
    moments = 0

    def killed_in(owner: Any, patch: pytest.MonkeyPatch, name: str) -> None:
        method = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal moments
            moments += 1
            if moments == moment:
                raise Killed
            return method(*arguments, **options)

        patch.setattr(owner, name, call)

    def stopped_in_realnvp(_self: Runner, step: Step, *options: str, reserved: bool = False) -> int:
        if str(step) == "train mnist realnvp 0" and not options:
            raise TimeIsUpError
        return at_once(step, *options)

    per_class.finished(2)
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_call", stopped_in_realnvp)
        for owner, name in (
            (Runner, "_event"),
            (Runner, "_call"),
            (Ledger, "begin"),
            (Ledger, "finish"),
            (run, "pack"),
        ):
            killed_in(owner, patch, name)
        try:
            status = work(1000, "home")
        except Killed:
            assert moment <= MOMENTS
        else:
            assert (status, moments, moment) == (run.TIME_IS_UP, MOMENTS, MOMENTS + 1)
    archive = Path("home/run.tar.gz")
    before = cells_in(str(archive), tmp_path / "before").values() if archive.exists() else ()
    monkeypatch.setattr(Runner, "_call", lambda _self, step, *options, reserved=False: at_once(step, *options))
    assert work(1000, "home") == 0
    assert {cell.status for cell in cells_in(str(archive), tmp_path / "after").values()} == {"complete"}
    assert (moment <= 6) or before


def test_files_of_an_older_run_are_not_results_of_an_unfinished_cell(workshop: Workshop, tmp_path: Path) -> None:
    graph = Path("dvc.yaml").read_bytes()
    without_report(workshop)
    assert work() == 0
    Path("dvc.yaml").write_bytes(graph)
    workshop.change("evaluate.draws", 3)
    workshop.fault("evaluate mnist-realnvp-0", 7)
    with pytest.raises(UserError, match=r"5 of 6 cells done; failed, .*: evaluate mnist realnvp 0 \(exit status 7\)"):
        work(out="part")
    assert Path("runs/evaluate/mnist-realnvp-0.json").exists()
    (cell,) = [cell for cell in cells_in("part/run.tar.gz", tmp_path / "x").values() if cell.status != "complete"]
    assert (cell.stage, cell.status, cell.message) == ("evaluate", "failed", "exit status 7")


def test_a_failed_cell_does_not_stop_the_others(workshop: Workshop) -> None:
    without_report(workshop)
    workshop.fault("train mnist-lunet-0", 1)
    with pytest.raises(UserError, match="4 of 6 cells done; failed"):
        work()
    assert workshop.done() == [cell for cell in ALL if cell != "evaluate mnist-lunet-0"]


def test_a_failed_data_stage_stops_the_run(workshop: Workshop) -> None:
    graph = read_yaml(workshop.folder / "dvc.yaml")
    graph["stages"]["data"]["do"]["cmd"] = 'python -c "raise SystemExit(1)"'
    write_yaml(workshop.folder / "dvc.yaml", graph)
    with pytest.raises(UserError, match=r"0 of 6 cells done; failed, .*: data mnist \(exit status 1\)"):
        work()
    assert workshop.done() == []


def test_a_measurement_that_exceeds_the_limit_is_reported_and_blocks_no_other_cell(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_report(workshop)
    workshop.fault("measure mnist-lunet", "hang")
    # It has the first turn, then the last one, and is given up when it was given all the time there is.
    for done in (ALL[:1], [*ALL[1:], ALL[0]]):
        assert work(100, jump=99) == run.TIME_IS_UP
        assert workshop.done() == done
        Path("hanging").unlink()
    with pytest.raises(UserError, match="measure mnist lunet needs more time"):
        work(100, jump=99)


def test_of_the_stopped_cells_the_one_that_waited_longest_comes_first(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_report(workshop)
    for recipe in ("lunet", "realnvp", "lunet"):
        workshop.fault(f"measure mnist-{recipe}", "hang")
        assert work(100, jump=99) == run.TIME_IS_UP
        Path("hanging").unlink()
    workshop.done()
    workshop.fault("nothing", 0)
    assert work(100) == 0
    assert workshop.done() == ["measure mnist-realnvp", "measure mnist-lunet"]


def test_no_cell_begins_shortly_before_the_time_limit(workshop: Workshop) -> None:
    assert work(STOPPING + PACKING + WORTHWHILE - 1) == run.TIME_IS_UP
    assert workshop.done() == []
    assert work(SHORTEST - WORTHWHILE - 1) == run.TIME_IS_UP
    assert workshop.done() == ALL[:2]


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
    status, output = workshop.run("--time-limit", "50", "--out", "x")
    assert (status, output) == (
        1,
        "error: --time-limit must be at least 52 seconds, to stop a training, evaluate it and pack\n",
    )


def test_the_paper_preset_stops_at_once_without_a_gpu(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    (workshop.folder / "params.yaml").write_bytes(preset_text("paper").encode())
    (workshop.folder / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    status, output = workshop.run()
    assert status == 1
    assert "the preset 'paper' needs a CUDA GPU" in output
    assert "train" not in output
    assert workshop.done() == []
