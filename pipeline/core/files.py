"""Reading and writing the pipeline's files: whole or not at all."""

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
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, put in its place when the block ends well.

    The block may write a file or make a folder there. When it fails, nothing is left behind and what stood at ``path``
    is untouched. What a process left behind that was killed meanwhile is removed by the next one.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(path)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}-{os.getpid()}-", dir=path.parent))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    fresh, old = holder / path.name, holder / "old" / path.name
    try:
        yield fresh
        # Only a file takes the place of another at once.
        if path.is_dir() or (fresh.is_dir() and path.exists()):
            old.parent.mkdir()
            path.rename(old)
        try:
            fresh.replace(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except OSError as error:
        # A disk that is full names no file.
        error.filename = error.filename or str(path)
        raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _remove_left_behind(path: Path) -> None:
    """Remove the temporary folders for ``path`` of processes that are no more."""
    for folder in path.parent.iterdir():
        found = re.fullmatch(rf"\.{re.escape(path.name)}-(\d+)-\w+", folder.name)
        if found and not is_running(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended; one whose parent has not taken notice of its end has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def refuse_foreign(folder: Path, marker: str) -> None:
    """Refuse to replace a folder that does not hold ``marker``: a mistyped path must not delete what is there.

    Raises:
        UserError: If there is a file in its place, or a folder that holds other things.
    """
    folder = Path(folder)
    if not folder.exists() or (folder / marker).is_file() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise UserError(f"{folder} holds something else than this stage writes; give another folder, or delete it first")


def without_paths(message: str) -> str:
    """A message in which absolute paths, which tell of the machine, are left out."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:\\|~?/)[\w.+-]+(?:[\\/][\w.+-]+)+", "<path>", message)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with plain newlines, whole or not at all."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", newline="\n")


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file whole or not at all, on the disk itself when this returns; one process at a time may do so."""
    fresh = path.with_name(f".{path.name}.part")
    try:
        with fresh.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write ``value`` as JSON; NaN and infinity are refused, since JSON has no word for them.

    Args:
        path: The file.
        value: What it will hold.
        sealed: Whether ``value``, then a dictionary, gets a checksum, which `read_json` looks at.
    """
    content = value | {"checksum": _checksum(value)} if sealed else value
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; one that is missing, damaged or changed since it was sealed is a `UserError` that names it."""
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
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
