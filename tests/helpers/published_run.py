"""A run under `reports/published/`, made up."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from pipeline.core.files import write_json
from pipeline.page.published_runs import FILES


def publish(other: Path, reports: Path, name: str, **about: Any) -> Path:
    """Lay a run down as `pipeline.publish` does, with a manifest of the files that matter here."""
    folder = reports / "published" / name
    folder.mkdir(parents=True)
    for file in FILES:
        shutil.copy(other / file, folder)
    seal(folder, **{"commit": "beef" + 36 * "0", "dirty": False, **about})
    return folder


def seal(folder: Path, **about: Any) -> None:
    files = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in FILES}
    write_json(folder / "manifest.json", {**about, "files": files})
