"""Reads the pipeline's files, and writes them atomically."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipeline.core.console import UserError


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block succeeds.

    The block may write a file or make a folder there. If it fails, ``path`` is unchanged and no temporary files remain.
    The next call removes the temporary files of a process that was killed. A ``durable`` file survives a power cut.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}-{os.getpid()}-", dir=path.parent))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    temporary, old = holder / path.name, holder / "old" / path.name
    try:
        yield temporary
        if durable:
            _synchronise(temporary)
        # Only a file can replace another in one operation.
        if path.is_dir() or (temporary.is_dir() and path.exists()):
            old.parent.mkdir()
            path.rename(old)
        try:
            temporary.replace(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        if durable and os.name == "posix":  # elsewhere folders cannot be opened
            _synchronise(path.parent)
    except OSError as error:
        # The error of a full disk names no file.
        error.filename = error.filename or str(path)
        raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary folders for ``path`` of processes that have ended."""
    for folder in path.parent.iterdir():
        match = re.fullmatch(rf"\.{re.escape(path.name)}-(\d+)-\w+", folder.name)
        if match and not is_running(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended; a zombie has ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def refuse_foreign(folder: Path, marker: str) -> None:
    """Refuse to replace a folder without ``marker``, so that a mistyped path deletes nothing.

    Raises:
        UserError: If the path is a file, or a folder with other contents.
    """
    folder = Path(folder)
    if not folder.exists() or (folder / marker).is_file() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise UserError(f"{folder} holds something else than this stage writes; give another folder, or delete it first")


def without_paths(message: str) -> str:
    """A message without absolute paths, which would identify the machine."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:\\|~?/)[\w.+-]+(?:[\\/][\w.+-]+)+", "<path>", message)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically as UTF-8 with plain newlines."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write ``value`` as JSON; raises ValueError for NaN and infinity, which JSON lacks.

    Args:
        path: The file.
        value: The content.
        sealed: Whether ``value``, which must be a dictionary, gets a checksum that `read_json` verifies.
    """
    content = value | {"checksum": _checksum(value)} if sealed else value
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises a `UserError` if it is missing, damaged, or changed since it was sealed."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that writes it (dvc repro)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): delete it and run dvc repro again") from None
    if isinstance(value, dict) and "checksum" in value and value.pop("checksum") != _checksum(value):
        raise UserError(f"{path} was changed after it was written: delete it and run dvc repro again")
    return value


def _checksum(value: dict[str, Any]) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode())


def sha256(source: Path | bytes | memoryview) -> str:
    """The SHA-256 of a file or of bytes, in hexadecimal."""
    if not isinstance(source, Path):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: Path, source: str) -> None:
    """Make a folder if there is none; raises a `UserError` that names ``source`` if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{source}: cannot write into {folder}: {error.strerror}") from None
