"""Writing files atomically, reading JSON, and the folders that must not be replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.console import UserError
from pipeline.core.files import check_writable, read_json, refuse_foreign, replacing, without_paths, write_json


def write_half(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError("half way")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="half way"):
        write_half(path)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for name in ("old", "new"):
        with replacing(folder) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_numbers_that_json_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_a_json_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json .*dvc repro"):
        read_json(path)


def test_a_sealed_file_is_read_as_it_was_written_and_a_change_is_named(tmp_path: Path) -> None:
    path, value = tmp_path / "a.json", {"b": 1.25, "a": ["\u00e4", None]}
    write_json(path, value, sealed=True)
    assert read_json(path) == value
    path.write_text(path.read_text(encoding="utf-8").replace("1.25", "1.2"), encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.json was changed after it was written: delete it and run dvc repro"):
        read_json(path)


def test_the_next_write_removes_the_temporary_files_of_a_killed_process(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, running = (tmp_path / f".a.json-{pid}-x1_y" for pid in (ended.pid, os.getpid()))
    other, unlike = tmp_path / f".b.json-{ended.pid}-x1_y", tmp_path / f".a.json-{ended.pid}"
    for folder in (left, running, other, unlike):
        folder.mkdir()
        (folder / "a.json").touch()
    write_json(tmp_path / "a.json", 1)
    assert set(tmp_path.iterdir()) == {tmp_path / "a.json", running, other, unlike}


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*a\.json"):
        write_json(tmp_path / "file" / "a.json", 1)


@pytest.mark.parametrize("content", [[], ["run.json", "flows"]])
def test_a_folder_of_the_same_kind_may_be_replaced(tmp_path: Path, content: list[str]) -> None:
    for name in content:
        (tmp_path / name).touch()
    refuse_foreign(tmp_path, "run.json")
    refuse_foreign(tmp_path / "missing", "run.json")


def test_a_folder_with_other_contents_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mnist-lunet-0").mkdir()
    with pytest.raises(UserError, match="holds something else"):
        refuse_foreign(tmp_path, "run.json")
    with pytest.raises(UserError, match="holds something else"):
        refuse_foreign(Path(__file__), "run.json")


def test_the_old_file_stays_when_the_block_writes_no_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert read_json(path) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("message", "clean"),
    [
        ("3.2 bits/dim after 5/6 epochs", "3.2 bits/dim after 5/6 epochs"),
        ("cannot read '/home/me/data/x.npy'", "cannot read '<path>'"),
        (r"C:\Users\me\x failed", "<path> failed"),
    ],
)
def test_paths_are_left_out_of_messages(message: str, clean: str) -> None:
    assert without_paths(message) == clean


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b", "--out")
    assert [*(tmp_path / "a").iterdir()] == [tmp_path / "a/b"]
    assert [*(tmp_path / "a/b").iterdir()] == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out: cannot write into .*file: File exists"):
        check_writable(tmp_path / "file", "--out")
