"""The runner with a plan: the gate, the parameters, and the cells that a published run has."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from runner_calls import ALL, cells_in, work
from workshop import PYTHONPATH, Workshop, write_yaml

from pipeline import run
from pipeline.core.console import UserError
from pipeline.core.files import write_json
from pipeline.core.params import load_params, read_yaml
from pipeline.presets.merged import load_preset
from pipeline.run import Runner
from pipeline.runner.archive import unpack
from pipeline.runner.merging import Published
from pipeline.runner.plan import GATE, Gate, Trial


@pytest.mark.parametrize(
    ("step_ms", "words"), [(8.0, "all fit"), (25.0, "3 of 10 classes fit, with a second call 4; never fewer epochs")]
)
def test_the_gate_chooses_how_realnvp_is_trained_and_says_what_that_allows(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], step_ms: float, words: str
) -> None:
    chosen = Trial(precision="bfloat16", capture=True, compile=False, step_ms=step_ms)
    before = read_yaml(Path("params.yaml"))
    for name, value in chosen.settings.items():
        workshop.change(f"recipes.realnvp.training.{name}", value)
    workshop.write_params(before)
    calls = 0

    def tried(_self: Runner, dataset: str, inputs: str) -> Gate:
        nonlocal calls
        calls += 1
        about: dict[str, Any] = {"dataset": dataset, "recipe": "realnvp", "device": "cuda"}
        gate = Gate(inputs=inputs, **about, steps=43_000, classes=10, trials=[chosen])
        write_json(GATE, gate.model_dump(mode="json"))
        return gate

    monkeypatch.setattr(Runner, "_try_variants", tried)
    for _ in range(2):
        workshop.write_params(before)
        assert work(515, "home", gated=True) == 0
        assert calls == 1
        training = read_yaml(Path("params.yaml"))["recipes"]["realnvp"]["training"]
        assert {name: training[name] for name in chosen.settings} == chosen.settings
        lines = capfd.readouterr().out.splitlines()
        assert [line for line in lines if "realnvp" in line and line.endswith(words)]
    assert workshop.done() == ALL
    with tarfile.open("home/run.tar.gz") as tar:
        assert GATE.as_posix() in tar.getnames()


def test_what_a_published_run_has_is_left_out(workshop: Workshop, tmp_path: Path) -> None:
    workshop.fault("evaluate mnist-realnvp-0", 3)
    with pytest.raises(UserError, match="5 of 6 cells done"):
        work(out="home")
    folder = tmp_path / "published"
    manifest = unpack(Path("home/run.tar.gz"), folder)
    published = Published(folder, manifest, load_params(folder / "params.yaml"))
    workshop.fault("nothing", 0)
    workshop.done()
    for path in ("runs", "home"):
        shutil.rmtree(path)
    assert work(out="home", published=published) == 0
    assert workshop.done() == ["train mnist-realnvp-0", "evaluate mnist-realnvp-0"]
    cells = cells_in("home/run.tar.gz", tmp_path / "second")
    left_out = cells["train mnist-lunet-0"]
    assert (left_out.status, left_out.message) == ("missing", "complete in an earlier run")
    assert cells["evaluate mnist-realnvp-0"].status == "complete"


def test_a_plan_takes_the_recipes_of_a_published_run_and_leaves_the_parameter_file_alone(
    workshop: Workshop, tmp_path: Path
) -> None:
    assert work(out="home") == 0
    folder = tmp_path / "published"
    manifest = unpack(Path("home/run.tar.gz"), folder)
    published = Published(folder, manifest, load_params(folder / "params.yaml"))
    before = Path("params.yaml").read_bytes()
    other = read_yaml(Path("params.yaml"))
    other["recipes"]["realnvp"]["training"]["capture"] = True
    write_yaml(Path("other.yaml"), other)
    assert load_params(run.write_plan("other.yaml", None)).recipes["realnvp"].training.capture  # type: ignore[union-attr]
    assert load_params(run.write_plan("other.yaml", published)).recipes == published.params.recipes
    assert load_params(run.write_plan("smoke", None)) == load_preset("smoke")
    assert Path("params.yaml").read_bytes() == before
    with pytest.raises(UserError, match="--plan: nope is no parameter file and no preset; the presets are laptop, "):
        run.write_plan("nope", None)


def test_a_published_run_of_other_parameters_is_refused_and_other_code_is_said(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work(out="home") == 0
    folder = tmp_path / "published"
    manifest = unpack(Path("home/run.tar.gz"), folder)
    published = Published(folder, manifest, load_params(folder / "params.yaml"))
    assert work(out="home", published=published) == 0
    assert "was made with other code" not in capsys.readouterr().out
    other = Published(folder, manifest.model_copy(update={"code": {}}), published.params)
    assert work(out="home", published=other) == 0
    assert "published was made with other code" in capsys.readouterr().out
    workshop.change("recipes.lunet.training.epochs", 7)
    with pytest.raises(UserError, match=r"made with other parameters \(recipes\.lunet\)"):
        work(out="home", published=published)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "afile"], "--out: cannot write into afile: "),
        (["--plan", "smoke", "--params", "other.yaml"], "--plan and --params are both given"),
        (["--published", "nothere"], "nothere is no published run; it has no manifest.json"),
        (["--time-limit", "1"], "--time-limit must be at least 52 seconds, to stop"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("afile").touch()
    monkeypatch.setattr("sys.argv", ["run", *options])
    with pytest.raises(UserError, match=words):
        run.main()
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]


def test_a_data_set_that_is_only_measured_has_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(tmp_path, grid__datasets=["fashion_mnist"], grid__recipes=["lunet"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    graph = read_yaml(tmp_path / "dvc.yaml")
    graph["stages"]["data"]["do"]["cmd"] = "touch ${key}"
    write_yaml(tmp_path / "dvc.yaml", graph)
    assert work(out="home") == 0
    assert shop.done() == ["measure mnist-lunet", "train fashion_mnist-lunet-0", "evaluate fashion_mnist-lunet-0"]
    assert Path("mnist").exists()
    assert cells_in("home/run.tar.gz", tmp_path / "x")["measure mnist-lunet"].status == "complete"
