"""The archive of a run: equal results give equal bytes, and every faulty archive is refused."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archives import Contents, forge, repack, unpacked
from runner_calls import work
from workshop import PYTHONPATH

from pipeline.core.console import UserError
from pipeline.core.files import write_json
from pipeline.core.params import load_params
from pipeline.publish import PUBLISHED, publish, summary
from pipeline.results.kept import Manifest, Origin
from pipeline.runner import archive as archive_module
from pipeline.runner.archive import path_in

RUN = "runs/train/mnist-lunet-0/run.json"
Change = Callable[[Contents], object]


def edit(contents: Contents, name: str, change: Callable[[Any], object]) -> None:
    value = json.loads(contents[name])
    change(value)
    contents[name] = json.dumps(value).encode()


def state(manifest: Any, stage: str, recipe: str) -> Any:
    return next(cell for cell in manifest["cells"] if (cell["stage"], cell["recipe"]) == (stage, recipe))


def test_equal_results_give_equal_archives_except_for_the_time(
    packed_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(packed_archive.parents[1])
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    with pytest.raises(UserError, match="5 of 6 cells done"):
        work(out="b")
    first, second = unpacked(packed_archive), unpacked(Path("b/run.tar.gz"))
    assert list(first) == list(second)
    assert [name for name in first if first[name] != second[name]] in (["manifest.json"], [])


def other_bytes(contents: Contents) -> None:
    contents[RUN] += b" "


def longer(contents: Contents) -> None:
    contents[RUN] += bytes(archive_module.LARGEST_FILE)


def a_path(contents: Contents) -> None:
    edit(contents, RUN, lambda value: value.update(note="see /home/someone/x.log"))
    forge(contents)


def without(name: str) -> Change:
    def change(contents: Contents) -> None:
        del contents[name]

    return change


def without_and_forged(name: str) -> Change:
    def change(contents: Contents) -> None:
        del contents[name]
        forge(contents)

    return change


def forged(stage: str, recipe: str, **values: Any) -> Change:
    return lambda contents: forge(contents, lambda manifest: state(manifest, stage, recipe).update(values))


def manifest_with(**values: Any) -> Change:
    return lambda contents: forge(contents, lambda manifest: manifest.update(values))


def edited(name: str, **values: Any) -> Change:
    def change(contents: Contents) -> None:
        edit(contents, name, lambda value: value.update(values))
        forge(contents)

    return change


def with_file(name: str, content: bytes) -> Change:
    def change(contents: Contents) -> None:
        contents[name] = content
        forge(contents)

    return change


def without_its_training(contents: Contents) -> None:
    for name in [name for name in contents if name.startswith("runs/train/mnist-lunet-0/")]:
        del contents[name]
    forge(contents, lambda manifest: state(manifest, "train", "lunet").update(status="missing", epochs=None))


def no_cell(contents: Contents) -> None:
    forge(contents, lambda manifest: manifest["cells"].pop())


BAD: dict[str, tuple[Change, str]] = {
    "changed": (other_bytes, "run.json is not what was packed: its SHA-256 is another"),
    "a file gone": (without(RUN), "do not name the same files: runs/train/mnist-lunet-0/run.json"),
    "a file gone and forged": (without_and_forged(RUN), "run.json is missing"),
    "no manifest": (without("manifest.json"), "has no manifest.json"),
    "another format": (manifest_with(format=2), "manifest.json: format: is 2; input should be 3"),
    "an unknown key": (manifest_with(more=1), "manifest.json: more: unknown key"),
    "a manifest that is none": (lambda c: c.update({"manifest.json": b"{"}), "json: the file: is .*; invalid JSON"),
    "too large a file": (longer, r"run.json has [\d,]+ bytes; at most 2,000,000"),
    "a path of a machine": (a_path, "run.json tells a path of a machine: /home/someone/x.log"),
    "no text": (with_file("params.yaml", b"\xff"), "params.yaml is no text in UTF-8"),
    "weights": (with_file("flows/weights.safetensors", b"x"), "allowed are relative paths"),
    "a name with a backslash": (with_file("a\\b.json", b"{}"), "allowed are relative paths"),
    "a hidden file": (with_file(".git/x.json", b"{}"), "allowed are relative paths"),
    "a parent": (with_file("runs/../../x.json", b"{}"), "allowed are relative paths"),
    "an absolute path": (with_file("/tmp/x.json", b"{}"), "allowed are relative paths"),
    "another preset": (manifest_with(preset="paper"), "is of the preset paper, but params.yaml of laptop"),
    "wrong parameters": (with_file("params.yaml", b"preset: paper\n"), "params.yaml has .* mistake"),
    "a cell less": (no_cell, "does not tell of exactly the cells"),
    "a finished cell called partial": (forged("train", "lunet", status="partial"), "but .* calls it partial"),
    "a failed cell called complete": (forged("evaluate", "realnvp", status="complete"), "realnvp-0.json is missing"),
    "more epochs": (forged("train", "lunet", epochs={"all": 40.0}), "has other epochs"),
    "another status": (forged("measure", "lunet", status="diverged"), "is complete, but .* calls it diverged"),
    "another recipe": (edited(RUN, recipe_params={}), "with other parameters"),
    "samples gone": (without_and_forged("runs/samples/mnist-lunet-0/samples.npy"), "samples.npy is missing"),
    "no grid": (with_file("runs/samples/mnist-lunet-0/by_class.npy", b"x"), "by_class.npy is no grid of images"),
    "an evaluation without its training": (without_its_training, "evaluation of mnist-lunet-0, but no training"),
    "a damaged history": (with_file("runs/mixture.json", b"{}"), "mixture.json: status: is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_faulty_archive_is_refused_and_leaves_nothing(packed_archive: Path, working_folder: Path, name: str) -> None:
    change, message = BAD[name]
    contents = unpacked(packed_archive)
    change(contents)
    repack(working_folder / "bad.tar.gz", contents)
    with pytest.raises(UserError, match=message) as error:
        publish(Path("bad.tar.gz"), "bad", replace=False)
    assert str(working_folder) not in str(error.value)
    assert {path.name for path in working_folder.rglob("*")} <= {"bad.tar.gz", "reports", "published"}


def link(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo("runs/link.json")
    member.type, member.linkname = kind, "/etc/passwd"
    return member


def large(number: int) -> list[tarfile.TarInfo]:
    members = [tarfile.TarInfo(f"runs/{i}.json") for i in range(number)]
    for member in members:
        member.size = archive_module.LARGEST_FILE
    return members


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([link(tarfile.SYMTYPE)], "is no plain file"),
        ([link(tarfile.LNKTYPE)], "is no plain file"),
        ([link(tarfile.FIFOTYPE)], "is no plain file"),
        ([link(tarfile.DIRTYPE)], "is no plain file"),
        ([tarfile.TarInfo(RUN)], "twice"),
        (large(53), "more than the 104,857,600 bytes"),
    ],
)
def test_unsafe_members_are_refused(
    packed_archive: Path, working_folder: Path, members: list[tarfile.TarInfo], message: str
) -> None:
    archive = repack(working_folder / "bad.tar.gz", unpacked(packed_archive), *members)
    with pytest.raises(UserError, match=message):
        publish(archive, "bad", replace=False)
    assert not (PUBLISHED / "bad").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", "half", "flipped"])
def test_a_file_that_is_not_a_whole_archive_is_refused(
    packed_archive: Path, working_folder: Path, content: bytes | str
) -> None:
    whole = packed_archive.read_bytes()
    middle = len(whole) // 2
    damaged = {"half": whole[:middle], "flipped": whole[:middle] + bytes(50) + whole[middle + 50 :]}
    (working_folder / "bad.tar.gz").write_bytes(damaged[content] if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"bad\.tar\.gz"):
        publish(Path("bad.tar.gz"), "bad", replace=False)
    assert not (PUBLISHED / "bad").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"message": "see /home/me/run.log, line 3"}', "/home/me/run.log"),
        (r"C:\Users\me\x", r"C:\Users\me\x"),
        ("~/data/x.npy", "~/data/x.npy"),
        ('xmlns="http://www.w3.org/2000/svg"', None),
        ("3.2 bits/dim after 5/6 epochs, runs/train/x", None),
        ("a <path> that was left out", None),
    ],
)
def test_paths_of_a_machine_are_found(text: str, found: str | None) -> None:
    assert path_in(text) == found


def test_uncommitted_changes_are_mentioned(packed_archive: Path) -> None:
    manifest = Manifest.model_validate_json(unpacked(packed_archive)["manifest.json"])
    origin = Origin(created="x", commit=40 * "a", dirty=True, code="")
    assert "not committed" in summary(manifest.model_copy(update={"runs": [origin]}))


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("LARGEST_FILE", 10, r"has [\d,]+ bytes; at most 10 are allowed"),
        ("LARGEST_CONTENTS", 100, "its files would have .* at most 100"),
        ("LARGEST_ARCHIVE", 100, "it would have .* at most 100"),
        ("LARGEST_FOLDER", 100, "folder would have .* bytes; at most 100"),
        ("MOST_FILES", 1, "folder would have 2 files; at most 1"),
    ],
)
def test_an_archive_over_a_limit_is_not_written_and_the_older_one_stays(
    packed_archive: Path, working_folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, message: str
) -> None:
    params = load_params(packed_archive.parents[1] / "params.yaml")
    result = working_folder / "folder/other.json"
    write_json(result, {"more": 1})
    archive = working_folder / "folder/run.tar.gz"
    archive.write_bytes(b"older")
    monkeypatch.setattr(archive_module, limit, value)
    with pytest.raises(UserError, match=f"is not written: .*{message}"):
        archive_module.pack(archive, params, [Path("folder/other.json")], [], {})
    assert archive.read_bytes() == b"older"


def test_what_can_be_packed_can_be_unpacked(
    packed_archive: Path, working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on an archive is on its bytes, not on those of its files."""
    size, plain = packed_archive.stat().st_size, sum(map(len, unpacked(packed_archive).values()))
    assert plain > 2 * size
    monkeypatch.setattr(archive_module, "LARGEST_ARCHIVE", size)
    monkeypatch.setattr(archive_module, "LARGEST_CONTENTS", plain)
    archive_module.unpack(packed_archive, working_folder / "whole")
    monkeypatch.setattr(archive_module, "LARGEST_CONTENTS", plain - 1)
    with pytest.raises(UserError, match="allowed in all"):
        archive_module.unpack(packed_archive, working_folder / "none")
