"""Publishing an archive: what is written, names, commits, and errors on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import forge, repack, unpacked
from PIL import Image
from runner_calls import work
from workshop import PYTHONPATH, ROOT, Workshop

from pipeline import publish as publish_module
from pipeline.core.console import UserError
from pipeline.core.files import sha256
from pipeline.publish import LARGEST, PUBLISHED, publish
from pipeline.results.kept import Manifest, read_run
from pipeline.results.reading import CellStatus


def manifest_of(name: str) -> Manifest:
    return Manifest.model_validate_json((PUBLISHED / name / "manifest.json").read_text())


def read_picture(path: Path) -> Any:
    return np.asarray(Image.open(path))


def test_an_archive_is_published_with_its_records_and_samples_alone(packed_archive: Path, working_folder: Path) -> None:
    words = publish(packed_archive, "paper-h100", replace=False)
    target = working_folder / PUBLISHED / "paper-h100"
    there = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    contents = unpacked(packed_archive)
    pictures = {name for name in there if name.endswith(".png")}
    assert "runs/samples/mnist-lunet-0/samples.png" in pictures
    assert {Path(name).parent.as_posix() for name in pictures} == {"runs/samples/mnist-lunet-0"}
    records = {"params.yaml", "runs/evaluate/mnist-lunet-0.json", "runs/mixture.json"}
    for name in ("lunet", "realnvp"):
        records |= {f"runs/train/mnist-{name}-0/{file}" for file in ("run.json", "history.csv")}
        records.add(f"runs/measure/mnist-{name}.json")
    assert set(there) == {"manifest.json", *records, *pictures}
    assert {name: there[name] for name in records} == {name: contents[name] for name in records}
    # The archive has all that the run wrote.
    assert {"runs/samples/mnist-lunet-0/nearest.npy", "runs/mixture.npy"} <= set(contents)
    samples = read_picture(target / "runs/samples/mnist-lunet-0/samples.png")
    assert samples.shape == (3 * 30 - 2, 4 * 30 - 2)
    manifest = manifest_of("paper-h100")
    assert manifest.files == {name: sha256(there[name]) for name in there if name != "manifest.json"}
    assert manifest.commit == "c0ffee" + 34 * "0"
    assert manifest.data["mnist"].title == "MNIST"
    assert [f"{cell.stage} {cell.key}" for cell in manifest.cells if not cell.finished] == ["evaluate mnist-realnvp-0"]
    assert b"/home/someone" not in b"".join(there.values())
    assert "5 of 6 cells\n  evaluate mnist-realnvp-0: failed, exit status 3" in words


def test_a_run_that_would_be_too_large_names_its_largest_files_and_nothing_changes(
    packed_archive: Path, working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "LARGEST", 20_000)
    largest = r"its largest files are runs/samples/mnist-lunet-0/\w+\.png \([\d,]+\), "
    with pytest.raises(UserError, match=rf"^it would take [\d,]+ bytes .* at most 20,000 are allowed, and {largest}"):
        publish(packed_archive, "large", replace=False)
    assert [path.name for path in PUBLISHED.iterdir()] == []


def test_five_seeds_of_the_laptop_preset_are_small_enough(working_folder: Path) -> None:
    """With the records and the samples of a published run of two data sets and five recipes."""
    source = ROOT / PUBLISHED / "overnight-cpu"
    sizes = {path: path.stat().st_size for path in source.rglob("*") if path.is_file()}
    once = [size for path, size in sizes.items() if path.parent.name in ("measure", "runs") or path.suffix == ".png"]
    assert sum(once) + 5 * (sum(sizes.values()) - sum(once)) <= LARGEST


def test_a_later_archive_adds_what_is_missing_and_each_cell_says_of_which_run_it_is(
    packed_archive: Path, working_folder: Path
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
    subjects = read_run(PUBLISHED / "v1").subjects["mnist"]
    assert subjects["realnvp"].metrics["bits_per_dim"] == {0: pytest.approx(1.45)}
    assert (PUBLISHED / "v1/runs/samples/mnist-realnvp-0/samples.png").is_file()
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
    packed_archive: Path, working_folder: Path
) -> None:
    publish(packed_archive, "v1", replace=False)
    contents = unpacked(packed_archive)
    name = "runs/measure/mnist-lunet.json"
    record = json.loads(contents[name])
    record["times"]["step"]["samples"][0] = 77.0
    contents[name] = json.dumps(record).encode()
    forge(contents, lambda manifest: manifest.update(created="2030-01-01T00:00:00+00:00"))
    other = repack(working_folder / "other.tar.gz", contents)
    before = (PUBLISHED / "v1" / name).read_bytes()
    with pytest.raises(UserError, match=r"have measure mnist-lunet, with other results; --replace takes those"):
        publish(other, "v1", replace=False)
    assert (PUBLISHED / "v1" / name).read_bytes() == before
    publish(other, "v1", replace=True)
    assert (PUBLISHED / "v1" / name).read_bytes() == contents[name]
    (PUBLISHED / "mine").mkdir()
    (PUBLISHED / "mine/notes.txt").touch()
    with pytest.raises(UserError, match="holds something else"):
        publish(packed_archive, "mine", replace=True)


def test_cells_of_other_parameters_or_data_are_refused(packed_archive: Path, working_folder: Path) -> None:
    publish(packed_archive, "v1", replace=False)
    contents = unpacked(packed_archive)
    contents["params.yaml"] = contents["params.yaml"].replace(b"draws: 1", b"draws: 2")
    forge(contents)
    with pytest.raises(UserError, match=r"v1 was made with other parameters \(evaluate\)"):
        publish(repack(working_folder / "other.tar.gz", contents), "v1", replace=True)
    contents = unpacked(packed_archive)
    forge(contents, lambda manifest: manifest["data"]["mnist"]["sha256"].update({"test_labels.npy": "0"}))
    with pytest.raises(UserError, match=r"v1 was made from other data of mnist"):
        publish(repack(working_folder / "other.tar.gz", contents), "v1", replace=True)
    forge(contents, lambda manifest: manifest["data"].clear())
    with pytest.raises(UserError, match=r"^manifest\.json does not describe the data of mnist"):
        publish(repack(working_folder / "other.tar.gz", contents), "v2", replace=False)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "A", "-x", "a b"])
def test_unsafe_names_are_refused(packed_archive: Path, working_folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not allowed"):
        publish(packed_archive, name, replace=True)


def test_without_git_the_commit_is_found_by_the_code(
    packed_archive: Path, working_folder: Path, monkeypatch: pytest.MonkeyPatch
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
