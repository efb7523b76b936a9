"""The data set on disk that the data stage writes and later stages read."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.console import UserError
from pipeline.core.files import read_json, sha256

Bytes = NDArray[np.uint8]
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
DESCRIPTION = "dataset.json"


@dataclass(frozen=True)
class Dataset:
    """Square images of shape (N, H, H) and labels of shape (N,), both uint8; ``info`` contains `dataset.json`."""

    name: str
    title: str
    class_names: tuple[str, ...]
    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes
    info: dict[str, Any]

    @property
    def in_paper(self) -> bool:
        """Whether it is one of the paper's data sets; a custom one has no claims and no published figures."""
        return not self.info.get("custom", False)


def load_dataset(folder: Path, name: str | None = None) -> Dataset:
    """The data set in ``folder``, every array checked against the SHA-256 in its `dataset.json`.

    Args:
        folder: The folder that the data stage wrote.
        name: The name that the data set must have; any by default.

    Raises:
        UserError: If a file is missing, truncated or changed; the message names it and says how to write it again.
    """
    description = Path(folder) / DESCRIPTION
    info = read_json(description)
    try:
        stored_name, title, class_names = info["name"], info["title"], tuple(info["class_names"])
        checksums = {array: info["sha256"][f"{array}.npy"] for array in ARRAYS}
    except (KeyError, TypeError):
        raise _unusable(description, "lacks a name, a title, class names or checksums") from None
    if name not in (None, stored_name):
        raise UserError(f"{folder} holds the data set {stored_name}, not {name}")
    arrays = {array: _load(description.with_name(f"{array}.npy"), checksum) for array, checksum in checksums.items()}
    return Dataset(name=stored_name, title=title, class_names=class_names, info=info, **arrays)


def _load(path: Path, checksum: str) -> Bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror})") from None
    if sha256(content) != checksum:
        raise _unusable(path, f"is damaged or was changed: its SHA-256 is not the one in {DESCRIPTION}")
    array: Bytes = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"{path} {reason}; delete {path.parent} and write it again with: dvc repro -f -s data")
