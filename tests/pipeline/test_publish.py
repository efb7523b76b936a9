"""Publishing an archive: what is written, names, commits, and errors on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from archives import Contents, forge, repack, unpacked
from workshop import ROOT, Workshop

from pipeline import publish as publish_module
from pipeline.core.console import StopRequest, UserError
from pipeline.page.published_runs import Manifest
from pipeline.publish import PUBLISHED, publish
from pipeline.run import Runner


def test_an_archive_is_published_whole_with_its_state_environment_and_parameters(
    packed_archive: Path, working_folder: Path
) -> None:
    words = publish(packed_archive, "paper-h100", replace=False)
    target = working_folder / PUBLISHED / "paper-h100"
    there = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    contents = unpacked(packed_archive)
    assert there == contents
    wanted = {"metrics.json", "timings.json", "results.csv", "timings.csv", "curves.csv", "latents.csv", "claims.json"}
    wanted |= {"mixture.json", "runs/mixture.json", "runs/mixture.npy", "figures/mixture.svg"}
    wanted |= {"figures/nearest-mnist-lunet.png", "runs/samples/mnist-lunet-0/interpolations.npy"}
    wanted |= {"provenance.json", "params.yaml", "manifest.json", "figures/curves-mnist.svg"}
    wanted |= {"figures/samples-mnist-lunet.png", "runs/samples/mnist-lunet-0/samples.npy"}
    wanted |= {"runs/train/mnist-lunet-0/run.json", "runs/train/mnist-lunet-0/history.csv"}
    wanted |= {"runs/evaluate/mnist-lunet-0.json", "runs/measure/mnist-realnvp.json"}
    assert wanted <= set(there)
    assert not [name for name in there if "flows" in name]
    manifest = Manifest.model_validate_json(there["manifest.json"])
    assert manifest.commit == "c0ffee" + 34 * "0"
    assert manifest.environments[0]["environment"]["processor"] == "A processor"
    assert [f"{cell.stage} {cell.key}" for cell in manifest.cells if not cell.finished] == ["evaluate mnist-realnvp-0"]
    assert b"/home/someone" not in b"".join(there.values())
    assert "5 of 6 cells\n  evaluate mnist-realnvp-0: failed, exit status 3" in words


def test_an_existing_name_is_refused_without_replace(packed_archive: Path, working_folder: Path) -> None:
    publish(packed_archive, "v1", replace=False)
    mark = PUBLISHED / "v1" / "mark.txt"
    mark.touch()
    with pytest.raises(UserError, match="is there already; give another name, or --replace"):
        publish(packed_archive, "v1", replace=False)
    assert mark.exists()
    publish(packed_archive, "v1", replace=True)
    assert not mark.exists()
    (PUBLISHED / "mine").mkdir()
    (PUBLISHED / "mine/notes.txt").touch()
    with pytest.raises(UserError, match="holds something else"):
        publish(packed_archive, "mine", replace=True)


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
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, content in unpacked(packed_archive).items():
        if name.startswith("runs/"):
            (working_folder / name).parent.mkdir(parents=True, exist_ok=True)
            (working_folder / name).write_bytes(content)
    assert Runner(Path("params.yaml"), float("inf"), StopRequest()).run(None) == 0
    # The one evaluation that had failed needs its weights again.
    assert shop.done() == ["train mnist-realnvp-0", "evaluate mnist-realnvp-0"]


def no_change(_contents: Contents) -> None:
    """Leave the contents as they are."""


def test_the_command_reports_a_mistake_in_one_line(packed_archive: Path, working_folder: Path) -> None:
    command = [sys.executable, "-m", "pipeline.publish", "none.tar.gz", "x"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (1, "error: none.tar.gz: No such file or directory\n")
