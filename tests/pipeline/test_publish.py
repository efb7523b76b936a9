"""Publishing an archive: what is written, names, commits, and errors on the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from archives import forge, repack, unpacked
from runner_calls import work
from workshop import PYTHONPATH, ROOT, Workshop

from pipeline import publish as publish_module
from pipeline.core.console import UserError
from pipeline.core.files import sha256
from pipeline.page.published_runs import Manifest
from pipeline.publish import PUBLISHED, publish
from pipeline.results.reading import CellStatus


@pytest.fixture
def data(packed_archive: Path, working_folder: Path) -> Path:
    """The data of the run, in the folder of the test."""
    return Path(shutil.copytree(packed_archive.parents[1] / "data", working_folder / "data"))


def manifest_of(name: str) -> Manifest:
    return Manifest.model_validate_json((PUBLISHED / name / "manifest.json").read_text())


def test_an_archive_is_published_with_the_tables_and_figures_of_its_results(
    packed_archive: Path, working_folder: Path, data: Path
) -> None:
    words = publish(packed_archive, "paper-h100", replace=False)
    target = working_folder / PUBLISHED / "paper-h100"
    there = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    contents = unpacked(packed_archive)
    assert {name for name in contents if there.get(name) != contents[name]} == {"manifest.json"}
    wanted = {"metrics.json", "timings.json", "results.csv", "timings.csv", "curves.csv", "latents.csv", "claims.json"}
    wanted |= {"mixture.json", "runs/mixture.json", "runs/mixture.npy", "figures/mixture.svg"}
    wanted |= {"figures/nearest-mnist-lunet.png", "runs/samples/mnist-lunet-0/interpolations.npy"}
    wanted |= {"provenance.json", "params.yaml", "manifest.json", "figures/curves-mnist.svg"}
    wanted |= {"figures/samples-mnist-lunet.png", "runs/samples/mnist-lunet-0/samples.npy"}
    wanted |= {"runs/train/mnist-lunet-0/run.json", "runs/train/mnist-lunet-0/history.csv"}
    wanted |= {"runs/evaluate/mnist-lunet-0.json", "runs/measure/mnist-realnvp.json"}
    assert wanted <= set(there)
    assert not [name for name in there if "flows" in name]
    manifest = manifest_of("paper-h100")
    assert manifest.files == {name: sha256(there[name]) for name in there if name != "manifest.json"}
    assert manifest.commit == "c0ffee" + 34 * "0"
    assert manifest.environments[0]["environment"]["processor"] == "A processor"
    assert [f"{cell.stage} {cell.key}" for cell in manifest.cells if not cell.finished] == ["evaluate mnist-realnvp-0"]
    assert b"/home/someone" not in b"".join(there.values())
    assert "5 of 6 cells\n  evaluate mnist-realnvp-0: failed, exit status 3" in words


def test_a_later_archive_adds_what_is_missing_and_each_cell_says_of_which_run_it_is(
    packed_archive: Path, working_folder: Path, data: Path
) -> None:
    publish(packed_archive, "v1", replace=False)
    mark = PUBLISHED / "v1" / "mark.txt"
    mark.touch()
    publish(packed_archive, "v1", replace=False)
    assert not mark.exists()
    later, code = later_archive(packed_archive, working_folder, "evaluate mnist-realnvp-0")
    assert code != manifest_of("v1").code
    words = publish(later, "v1", replace=False)
    assert "6 of 6 cells" in words
    assert "its cells are of 2 runs, with different code" in words
    manifest = manifest_of("v1")
    runs = {f"{cell.stage} {cell.key}": cell.run for cell in manifest.cells}
    first, second = (origin.created for origin in manifest.runs)
    assert second == "2030-01-01T00:00:00+00:00"
    assert {name for name, run in runs.items() if run == second} == {
        "train mnist-realnvp-0",
        "evaluate mnist-realnvp-0",
    }
    assert set(runs.values()) - {None} == {first, second}
    metrics = json.loads((PUBLISHED / "v1/metrics.json").read_text())["mnist"]
    assert metrics["realnvp"]["bits_per_dim"]["mean"] == pytest.approx(1.45)
    publish(packed_archive, "v1", replace=False)
    assert {f"{cell.stage} {cell.key}": cell.run for cell in manifest_of("v1").cells} == runs


def later_archive(archive: Path, folder: Path, completed: str) -> tuple[Path, dict[str, str]]:
    """An archive of a later run with other code, in which another cell is complete."""
    stage, _, key = completed.partition(" ")
    contents, made = unpacked(archive), archive.parents[1] / "made"
    for name in (
        f"evaluate/{key}.json",
        *(f"samples/{key}/{path.name}" for path in (made / "samples" / key).iterdir()),
    ):
        contents[f"runs/{name}"] = (made / name).read_bytes()
    code = {"pipeline/x.py": "0"}

    def complete(manifest: Any) -> None:
        manifest.update(created="2030-01-01T00:00:00+00:00", code=code)
        for cell in manifest["cells"]:
            if (cell["stage"], str(CellStatus(**cell).key)) == (stage, key):
                cell.update(status="complete", message=None)

    forge(contents, complete)
    return repack(folder / "later.tar.gz", contents), code


def test_other_results_of_a_complete_cell_are_refused_without_replace(
    packed_archive: Path, working_folder: Path, data: Path
) -> None:
    publish(packed_archive, "v1", replace=False)
    contents = unpacked(packed_archive)
    name = "runs/measure/mnist-lunet.json"
    record = json.loads(contents[name])
    record["times"]["step"]["samples"] = [77.0] * 5
    contents[name] = json.dumps(record).encode()
    forge(contents, lambda manifest: manifest.update(created="2030-01-01T00:00:00+00:00"))
    other = repack(working_folder / "other.tar.gz", contents)
    before = (PUBLISHED / "v1/timings.json").read_bytes()
    with pytest.raises(UserError, match=r"have measure mnist-lunet, with other results; --replace takes those"):
        publish(other, "v1", replace=False)
    assert (PUBLISHED / "v1/timings.json").read_bytes() == before
    publish(other, "v1", replace=True)
    assert json.loads((PUBLISHED / "v1/timings.json").read_text())["mnist"]["lunet"]["step_ms"]["median"] == 77
    (PUBLISHED / "mine").mkdir()
    (PUBLISHED / "mine/notes.txt").touch()
    with pytest.raises(UserError, match="holds something else"):
        publish(packed_archive, "mine", replace=True)


def test_cells_of_other_parameters_or_data_are_refused(packed_archive: Path, working_folder: Path, data: Path) -> None:
    publish(packed_archive, "v1", replace=False)
    contents = unpacked(packed_archive)
    contents["params.yaml"] = contents["params.yaml"].replace(b"draws: 1", b"draws: 2")
    forge(contents)
    with pytest.raises(UserError, match=r"v1 was made with other parameters \(evaluate\)"):
        publish(repack(working_folder / "other.tar.gz", contents), "v1", replace=True)
    forge(contents, lambda manifest: manifest["data"]["mnist"].update({"test_labels.npy": "0"}))
    with pytest.raises(UserError, match=r"data/mnist is not the data that the run was made from"):
        publish(repack(working_folder / "other.tar.gz", contents), "v2", replace=False)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "A", "-x", "a b"])
def test_unsafe_names_are_refused(packed_archive: Path, working_folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not allowed"):
        publish(packed_archive, name, replace=True)


def test_without_git_the_commit_is_found_by_the_code(
    packed_archive: Path, working_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = unpacked(packed_archive)

    def forget(manifest: Any) -> None:
        manifest["commit"] = manifest["dirty"] = None

    forge(contents, forget)
    archive = repack(working_folder / "x.tar.gz", contents)
    assert "its commit is unknown" in publish(archive, "unknown", replace=False)
    code = json.loads(contents["manifest.json"])["code"]
    monkeypatch.setattr(publish_module, "code_digests", lambda: code)
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-mx"]):
        subprocess.run(["git", *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert "unknown" not in publish(archive, "known", replace=False)
    assert json.loads((PUBLISHED / "known/manifest.json").read_text())["commit"] == head


def test_results_can_be_moved_to_another_machine_without_weights(
    packed_archive: Path, working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(working_folder, data__mnist__folder="/home/another/data")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    for name, content in unpacked(packed_archive).items():
        if name.startswith("runs/"):
            (working_folder / name).parent.mkdir(parents=True, exist_ok=True)
            (working_folder / name).write_bytes(content)
    assert work() == 0
    # The one evaluation that had failed needs its weights again.
    assert shop.done() == ["train mnist-realnvp-0", "evaluate mnist-realnvp-0"]


def test_the_command_reports_a_mistake_in_one_line(packed_archive: Path, working_folder: Path) -> None:
    command = [sys.executable, "-m", "pipeline.publish", "none.tar.gz", "x"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (1, "error: none.tar.gz: No such file or directory\n")
