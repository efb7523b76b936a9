"""Reads a custom data set: a .npz file, a folder of IDX files, or PNG files in one folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.core.console import UserError
from pipeline.core.dataset import ARRAYS, Bytes
from pipeline.sources.image_files import as_bytes, as_images, png_files, read_arrays, read_idx_file, read_pngs
from pipeline.sources.published import FILES, find_idx

LARGEST_SIDE = 64
KINDS = (
    f"a .npz file with {', '.join(ARRAYS)}; a folder with {', '.join(FILES)}, plain or .gz; or a folder with "
    "train/<class>/*.png and test/<class>/*.png"
)


def read_custom(path: Path) -> tuple[dict[str, Bytes], tuple[str, ...]]:
    """The arrays of a data set, by the names in `ARRAYS`, and its class names.

    Labels are renumbered from 0; the class names are the original labels or the names of the folders.

    Args:
        path: A .npz file with the four arrays; a folder with the four IDX files, plain or .gz; or a folder with PNG
            files in train/<class>/ and test/<class>/.

    Raises:
        UserError: If the path has none of these forms, or the data set cannot train and test a model. It needs square
            8-bit images of one size, one label per image, and 2 to 256 classes, each in both parts.
    """
    if not path.exists():
        raise UserError(f"{path} is not there; a data set of your own is {KINDS}")
    if (path / "train").is_dir() or (path / "test").is_dir():
        arrays, class_names = _from_pngs(path)
    else:
        arrays, class_names = _from_arrays(path)
    _check(arrays, class_names, path)
    return arrays, class_names


def _from_arrays(path: Path) -> tuple[dict[str, Bytes], tuple[str, ...]]:
    """The arrays of a .npz file or of IDX files, and the original labels."""
    if path.is_dir():
        paths = {file: find_idx(file, path) for file in FILES}
        names, contents = FILES, {file: read_idx_file(idx) for file, idx in paths.items() if idx}
    elif path.suffix.lower() == ".npz":
        names, contents = ARRAYS, read_arrays(path)
    else:
        raise UserError(f"{path} is no .npz file; a data set of your own is {KINDS}")
    missing = [name for name in names if name not in contents]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; a data set of your own is {KINDS}")
    arrays = {
        array: (as_images if array.endswith("images") else as_labels)(contents[name], f"{path}: {array}")
        for array, name in zip(ARRAYS, names, strict=True)
    }
    classes = np.unique(np.concatenate([arrays["train_labels"], arrays["test_labels"]]))
    for array in ("train_labels", "test_labels"):
        arrays[array] = np.searchsorted(classes, arrays[array]).astype(np.uint8)
    return arrays, tuple(map(str, classes.tolist()))


def as_labels(values: Bytes, where: str) -> Bytes:
    """Labels with shape (N,), uint8; the shape (N, 1) is accepted too."""
    values = values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1 or not len(values):
        raise UserError(f"{where} has the shape {values.shape}; labels have (N,), at least one")
    return as_bytes(values, where)


def _from_pngs(path: Path) -> tuple[dict[str, Bytes], tuple[str, ...]]:
    """The arrays of PNG files, sorted by file name, and the names of their folders, numbers in numeric order."""
    files: dict[str, dict[str, list[Path]]] = {}
    for part in ("train", "test"):
        files[part] = {folder.name: png_files(folder) for folder in (path / part).glob("*/")}
        if not files[part]:
            raise UserError(f"{path / part} holds no folders of classes; a data set of your own is {KINDS}")
    names = sorted(
        {*files["train"], *files["test"]}, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name)
    )
    arrays: dict[str, Bytes] = {}
    for part, by_class in files.items():
        arrays[f"{part}_images"] = read_pngs([file for name in names for file in by_class.get(name, [])])
        counts = [len(by_class.get(name, [])) for name in names]
        arrays[f"{part}_labels"] = np.repeat(np.arange(len(names)), counts).astype(np.uint8)
    return arrays, tuple(names)


def _check(arrays: dict[str, Bytes], class_names: tuple[str, ...], path: Path) -> None:
    """Raise a `UserError` if models cannot be trained and tested on a data set."""
    train, test = arrays["train_images"], arrays["test_images"]
    height, width = train.shape[1:]
    if test.shape[1:] != train.shape[1:]:
        raise UserError(f"{path}: test images are {test.shape[2]}x{test.shape[1]} pixels, the others {width}x{height}")
    if height != width or not 2 <= height <= LARGEST_SIDE:
        raise UserError(f"{path}: images are {width}x{height} pixels; square ones from 2 to {LARGEST_SIDE} are taken")
    if not 2 <= len(class_names) <= 256:
        raise UserError(f"{path} has {len(class_names)} classes; from 2 to 256 are taken")
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if len(images) != len(labels):
            raise UserError(f"{path} has {len(images)} {part} images, but {len(labels)} labels for them")
        empty = [name for label, name in enumerate(class_names) if label not in labels]
        if empty:
            raise UserError(f"{path} has no {part} images of the class {', '.join(empty)}; each class needs some")
