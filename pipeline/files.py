"""Reading and writing the pipeline's files: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.console import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, put in its place when the block ends well.

    The block may write a file or make a folder there. When it fails, nothing is left behind and what stood at ``path``
    is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    fresh, old = holder / path.name, holder / "old" / path.name
    try:
        yield fresh
        if path.exists() or path.is_symlink():
            old.parent.mkdir()
            path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def refuse_foreign(folder: Path, marker: str) -> None:
    """Refuse to replace a folder that does not hold ``marker``: a mistyped path must not delete what is there.

    Raises:
        UserError: If there is a file in its place, or a folder that holds other things.
    """
    folder = Path(folder)
    if not folder.exists() or (folder / marker).is_file() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise UserError(f"{folder} holds something else than this stage writes; give another folder, or delete it first")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with plain newlines, whole or not at all."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON; NaN and infinity are refused, since JSON has no word for them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that writes it (dvc repro)") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): delete it and run dvc repro again") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
