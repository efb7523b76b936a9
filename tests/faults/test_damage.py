"""Each file that a stage reads, damaged in several ways: the stage names the file and says what to do."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fake_results import Project, parameters

from lunet import save_flow
from pipeline import collect, evaluate, report, train
from pipeline.core.console import exit_with
from pipeline.core.dataset import ARRAYS
from pipeline.core.files import read_json, write_json
from pipeline.core.params import load_params
from pipeline.results.claims import CLAIMS, POSTER, load_claims, load_poster
from pipeline.training.models import build

pytestmark = pytest.mark.faults

CELL = ["--dataset", "mnist", "--recipe", "lunet"]
STAGES: dict[str, Callable[[], None]] = {
    "train": train.main,
    "evaluate": evaluate.main,
    "collect": collect.main,
    "report": report.main,
}
ARGUMENTS = {
    "train": [*CELL, "--out", "runs/train/new"],
    "evaluate": [*CELL, "--out", "runs/evaluate/new.json", "--samples", "runs/samples/new"],
    "collect": [],
    "report": [],
}
Damage = Callable[[bytes], bytes]


def emptied(_: bytes) -> bytes:
    return b""


def cut(content: bytes) -> bytes:
    return content[: Random(len(content)).randrange(1, len(content))]


def garbage(content: bytes) -> bytes:
    return Random(0).randbytes(len(content))


def one_bit(content: bytes) -> bytes:
    changed = bytearray(content)
    # Within a number, so that JSON stays valid.
    digits = [index for index, byte in enumerate(changed) if byte in b"2345678"]
    changed[digits[len(digits) // 2]] ^= 1
    return bytes(changed)


def last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def another_structure(_: bytes) -> bytes:
    return b'{"dataset": ["mnist"], "claims": 3, "paper": null}'


ANY: list[Damage] = [emptied, cut, garbage]
STRUCTURED: list[Damage] = [*ANY, another_structure]
SEALED: list[Damage] = [*STRUCTURED, one_bit]
FLOW = "runs/train/mnist-lunet-0/flows/all"
ARTEFACTS: list[tuple[str, list[str], list[Damage]]] = [
    ("train", ["data/mnist/dataset.json"], SEALED),
    ("train", [f"data/mnist/{part}.npy" for part in ARRAYS], [cut, one_bit]),
    ("evaluate", ["runs/train/mnist-lunet-0/run.json", f"{FLOW}/config.json"], SEALED),
    ("evaluate", [f"{FLOW}/weights.safetensors"], [*ANY, one_bit, last_bit]),
    ("collect", ["runs/train/mnist-realnvp-0/run.json", "runs/evaluate/mnist-lunet-0.json"], SEALED),
    ("collect", ["runs/measure/mnist-lunet.json", "runs/mixture.json"], SEALED),
    ("collect", ["runs/mixture.npy"], [*ANY, one_bit]),
    ("collect", ["runs/train/mnist-lunet-0/history.csv", "runs/samples/mnist-lunet-0/samples.npy"], ANY),
    ("collect", [f"runs/samples/mnist-lunet-0/{name}.npy" for name in ("nearest", "interpolations")], ANY),
    ("collect", ["params.yaml"], ANY),
    (
        "report",
        [f"reports/{name}.json" for name in ("metrics", "timings", "claims", "mixture", "provenance")],
        STRUCTURED,
    ),
    ("report", ["reports/results.csv", "reports/timings.csv"], ANY),
    ("report", ["reports/figures/likelihood-mnist.svg", "reports/figures/samples-mnist-lunet.png"], ANY),
]
CASES = [
    pytest.param(stage, path, damage, id=f"{path}-{damage.__name__}")
    for stage, paths, damages in ARTEFACTS
    for path in paths
    for damage in damages
]


@pytest.fixture(scope="module")
def intact_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with all files intact."""
    root = tmp_path_factory.mktemp("whole")
    values = parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp"], device="cpu")
    values["recipes"]["lunet"]["model"]["layers"] = 2
    project = Project(root, values)
    recipe = load_params(project.params).recipe("lunet")
    save_flow(build(recipe, (1, 28, 28)), project.runs / "train/mnist-lunet-0/flows/all")
    for path in (*project.runs.rglob("*.json"), project.data / "mnist/dataset.json"):
        if path.name != "config.json":
            write_json(path, read_json(path), sealed=True)
    project.collect()
    return root


def message_of(stage: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a stage that ends with an error."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", [stage, *ARGUMENTS[stage]])
    with pytest.raises(SystemExit) as caught:
        exit_with(STAGES[stage])
    message = capsys.readouterr().err
    assert caught.value.code == 1
    assert message.startswith("error: ")
    assert message.count("\n") <= 10
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(("stage", "path", "damage"), CASES)
def test_a_damaged_file_is_named_with_what_to_do(
    tmp_path: Path,
    intact_project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    path: str,
    damage: Damage,
) -> None:
    root = tmp_path / "project"
    shutil.copytree(intact_project, root)
    file = root / path
    file.write_bytes(damage(file.read_bytes()))
    message = message_of(stage, root, monkeypatch, capsys)
    # A flow is named by its folder.
    assert str(Path(path).parent if "flows" in path else path) in message
    # A damaged params.yaml must be corrected by hand.
    assert path == "params.yaml" or any(word in message for word in ("dvc repro", "python -m pipeline."))


@pytest.mark.parametrize(("source", "load"), [(CLAIMS, load_claims), (POSTER, load_poster)])
@pytest.mark.parametrize("damage", STRUCTURED)
def test_damaged_claims_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Damage, source: Path, load: Callable[[Path], object]
) -> None:
    path = tmp_path / source.name
    path.write_bytes(damage(source.read_bytes()))

    def main() -> None:
        load(path)

    with pytest.raises(SystemExit):
        exit_with(main)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert source.name in message
    assert "git checkout" in message


@pytest.mark.parametrize("stage", ["evaluate", "collect", "report"])
def test_an_intact_project_is_read(
    tmp_path: Path, intact_project: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    root = tmp_path / "project"
    shutil.copytree(intact_project, root)
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", [stage, *ARGUMENTS[stage]])
    # An untrained flow models noise badly, but its likelihood is finite.
    STAGES[stage]()
