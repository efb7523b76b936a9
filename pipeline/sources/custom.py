"""Reads a custom data set: a .npz file, a folder of IDX files, or PNG files in one folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.core.console import UserError
from pipeline.core.dataset import ARRAYS, Bytes
from pipeline.sources.image_files import as_bytes, as_images, png_files, read_idx_file, read_npz, read_pngs
from pipeline.sources.published import FILES

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
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise UserError(f"{path} is no .npz file; a data set of your own is {KINDS}")
        contents = read_npz(path)
        _require([array for array in ARRAYS if array not in contents], path)
    elif (path / "train").is_dir() or (path / "test").is_dir():
        return _checked(*_from_pngs(path), path)
    else:
        files = {array: _idx_file(path, file) for array, file in zip(ARRAYS, FILES, strict=True)}
        _require([name for name, file in zip(FILES, files.values(), strict=True) if file is None], path)
        contents = {array: read_idx_file(file) for array, file in files.items() if file is not None}
    arrays = {
        array: as_images(contents[array], f"{path}: {array}")
        if array.endswith("images")
        else as_labels(contents[array], f"{path}: {array}")
        for array in ARRAYS
    }
    classes = np.unique(np.concatenate([arrays["train_labels"], arrays["test_labels"]]))
    for array in ("train_labels", "test_labels"):
        arrays[array] = np.searchsorted(classes, arrays[array]).astype(np.uint8)
    return _checked(arrays, tuple(map(str, classes.tolist())), path)


def as_labels(values: Bytes, where: str) -> Bytes:
    """Labels with shape (N,), uint8; the shape (N, 1) is accepted too."""
    values = values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1 or not len(values):
        raise UserError(f"{where} has the shape {values.shape}; labels have (N,), at least one")
    return as_bytes(values, where)


def _idx_file(folder: Path, file: str) -> Path | None:
    """The path of an IDX file in a folder, plain or compressed; None if it is missing."""
    return next((path for suffix in ("", ".gz") if (path := folder / f"{file}{suffix}").is_file()), None)


def _require(missing: list[str], path: Path) -> None:
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; a data set of your own is {KINDS}")


def _from_pngs(path: Path) -> tuple[dict[str, Bytes], tuple[str, ...]]:
    """The arrays of PNG files, sorted by file name, and the names of their folders, numbers in numeric order."""
    folders = {part: {folder.name: folder for folder in _class_folders(path / part)} for part in ("train", "test")}
    names = sorted({*folders["train"], *folders["test"]}, key=_sort_key)
    arrays: dict[str, Bytes] = {}
    for part, by_class in folders.items():
        files = {name: png_files(by_class[name]) for name in names if name in by_class}
        arrays[f"{part}_images"] = read_pngs([file for name in files for file in files[name]])
        counts = [len(files.get(name, [])) for name in names]
        arrays[f"{part}_labels"] = np.repeat(np.arange(len(names)), counts).astype(np.uint8)
    return arrays, tuple(names)


def _class_folders(path: Path) -> list[Path]:
    folders = [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []
    if not folders:
        raise UserError(f"{path} holds no folders of classes; a data set of your own is {KINDS}")
    return folders


def _sort_key(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (1 << 62, name)


def _checked(
    arrays: dict[str, Bytes], class_names: tuple[str, ...], path: Path
) -> tuple[dict[str, Bytes], tuple[str, ...]]:
    """The arrays and class names, if models can be trained and tested on them; else raises a `UserError`."""
    train, test = arrays["train_images"], arrays["test_images"]
    height, width = train.shape[1:]
    if test.shape[1:] != train.shape[1:]:
        raise UserError(f"{path}: test images are {test.shape[2]}x{test.shape[1]} pixels, the others {width}x{height}")
    if height != width or not 2 <= height <= LARGEST_SIDE:
        raise UserError(f"{path}: images are {width}x{height} pixels; square ones from 2 to {LARGEST_SIDE} are taken")
    for part in ("train", "test"):
        images, labels = len(arrays[f"{part}_images"]), len(arrays[f"{part}_labels"])
        if images != labels:
            raise UserError(f"{path} has {images} {part} images, but {labels} labels for them")
    if not 2 <= len(class_names) <= 256:
        raise UserError(f"{path} has {len(class_names)} classes; from 2 to 256 are taken")
    for part in ("train", "test"):
        counts = np.bincount(arrays[f"{part}_labels"], minlength=len(class_names))
        empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
        if empty:
            raise UserError(f"{path} has no {part} images of the class {', '.join(empty)}; each class needs some")
    return arrays, class_names
