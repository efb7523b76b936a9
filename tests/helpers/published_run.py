"""Made-up runs under `reports/published/`."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from pipeline.core.files import write_json
from pipeline.page.published_runs import FILES


def publish(source: Path, reports: Path, name: str, **fields: Any) -> Path:
    """Copy the results in ``source`` to a published run, with a manifest as `pipeline.publish` writes it."""
    folder = reports / "published" / name
    folder.mkdir(parents=True)
    for file in FILES:
        shutil.copy(source / file, folder)
    seal(folder, **{"commit": "beef" + 36 * "0", "dirty": False, **fields})
    return folder


def seal(folder: Path, **fields: Any) -> None:
    """Write a manifest with the checksums of the files as they are; ``fields`` replace others."""
    files = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in FILES}
    manifest: dict[str, Any] = {"format": 1, "created": "2026-01-02T03:04:05+00:00", "preset": "laptop"}
    manifest |= {"environments": [], "cells": [], "code": {}, "files": files}
    write_json(folder / "manifest.json", manifest | fields)
