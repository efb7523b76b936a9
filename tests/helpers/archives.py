"""Helpers that unpack, repack and forge the archive of a run."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Contents = dict[str, bytes]


def unpacked(archive: Path) -> Contents:
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def repack(path: Path, contents: Contents, *extra_members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra_members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def forge(contents: Contents, changes: Callable[[Any], object] = lambda _: None) -> None:
    """Write the matching checksums, and any ``changes``, to the manifest."""
    manifest = json.loads(contents["manifest.json"])
    manifest["files"] = {n: hashlib.sha256(c).hexdigest() for n, c in contents.items() if n != "manifest.json"}
    changes(manifest)
    contents["manifest.json"] = json.dumps(manifest).encode()
