"""Reads 8-bit grey images from .npz, .npy, IDX (also .gz) and PNG files, and custom data sets made of them."""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.console import UserError
from pipeline.core.dataset import ARRAYS, Bytes
from pipeline.core.progress import Progress
from pipeline.sources.published import FILES, SourceError, find_idx, parse_idx

LARGEST_SIDE = 64
LARGEST_IDX = 1 << 31
KINDS = (
    f"a .npz file with {', '.join(ARRAYS)}; a folder with {', '.join(FILES)}, plain or .gz; or a folder with "
    "train/<class>/*.png and test/<class>/*.png"
)
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_ERRORS = (OSError, ValueError, SyntaxError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)


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
    has_parts = (path / "train").is_dir() or (path / "test").is_dir()
    arrays, class_names = _from_pngs(path) if has_parts else _from_arrays(path)
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
    return arrays, class_names


def _from_arrays(path: Path) -> tuple[dict[str, Bytes], tuple[str, ...]]:
    """The arrays of a .npz file or of IDX files, and the original labels."""
    if path.is_dir():
        paths = {file: find_idx(file, path) for file in FILES}
        names, contents = FILES, {file: _read_idx_file(idx) for file, idx in paths.items() if idx}
    elif path.suffix.lower() == ".npz":
        names, contents = ARRAYS, _read_arrays(path)
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


def _from_pngs(path: Path) -> tuple[dict[str, Bytes], tuple[str, ...]]:
    """The arrays of PNG files, sorted by file name, and the names of their folders, numbers in numeric order."""
    files: dict[str, dict[str, list[Path]]] = {}
    for part in ("train", "test"):
        files[part] = {folder.name: png_files(folder) for folder in (path / part).glob("*/")}
        if not files[part]:
            raise UserError(f"{path / part} holds no folders of classes; a data set of your own is {KINDS}")
    names = sorted(
        {*files["train"], *files["test"]}, key=lambda name: (int(name) if name.isdecimal() else math.inf, name)
    )
    arrays: dict[str, Bytes] = {}
    for part, by_class in files.items():
        in_order = [by_class.get(name, []) for name in names]
        arrays[f"{part}_images"] = read_pngs([file for of_class in in_order for file in of_class])
        arrays[f"{part}_labels"] = np.repeat(np.arange(len(names)), [*map(len, in_order)]).astype(np.uint8)
    return arrays, tuple(names)


def read_pictures(path: Path, array: str | None = None) -> tuple[Bytes, list[str]]:
    """Images of shape (N, H, W), uint8, and a name for each: its path in a folder, else its index.

    Args:
        path: A .npz, .npy, IDX or PNG file, or a folder with PNG files at any depth, read in the order of their names.
        array: The name of an array in a .npz file; by default "images", "test_images", or the only array.

    Raises:
        UserError: If the path contains nothing readable, or not 8-bit grey images of one size.
    """
    kind = path.suffix.lower()
    if path.is_dir():
        files = png_files(path)
        return read_pngs(files), [file.relative_to(path).as_posix() for file in files]
    if kind == ".png":
        return read_pngs([path]), [path.name]
    arrays = _read_arrays(path) if kind in (".npz", ".npy") else {"images": _read_idx_file(path)}
    wanted = [array] if array else ["images", "test_images", *(arrays if len(arrays) == 1 else ())]
    name = next((name for name in wanted if name in arrays), None)
    if name is None:
        available = ", ".join(arrays) or "none"
        raise UserError(f"{path} has these arrays: {available}; name the one with the images by --array")
    images = as_images(arrays[name], str(path))
    return images, [str(number) for number in range(len(images))]


def png_files(folder: Path) -> list[Path]:
    """The PNG files of a folder, at any depth, sorted by name; raises a `UserError` if it contains none."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() == ".png" and file.is_file())
    if not files:
        raise UserError(f"{folder} holds no .png file")
    return files


def read_pngs(files: Sequence[Path]) -> Bytes:
    """The images of PNG files, of one size, with shape (N, H, W).

    Raises:
        UserError: If one cannot be read, is not 8-bit, has colours, or has another size than the first.
    """
    images: list[Bytes] = []
    with Progress(f"reading {files[0].parent}", len(files)) as progress:
        for file in files:
            images.append(_read_png(file))
            (height, width), (first_height, first_width) = images[-1].shape, images[0].shape
            if (height, width) != (first_height, first_width):
                sizes = f"{width}x{height} pixels, {files[0].name} {first_width}x{first_height}"
                raise UserError(f"{file} is {sizes}; one size is needed")
            progress.step(file.name)
    return np.stack(images)


def _read_png(file: Path) -> Bytes:
    """The values of a whole PNG file, with shape (H, W); colour channels are accepted if they are equal."""
    if read_bytes(file, len(PNG_START)) != PNG_START:
        raise UserError(f"{file} is not a PNG file")
    try:
        with Image.open(file, formats=["PNG"]) as png:
            png.verify()
        with Image.open(file, formats=["PNG"]) as png:
            # Pillow converts other depths to 8 bits; the file's is the number in the name of its encoding: "RGB;16B".
            depth = re.search(r"\d+", str(png.tile[0].args))
            if depth:
                raise UserError(f"{file} has {depth[0]} bits a value; 8-bit PNG files are wanted")
            pixels = np.asarray(png.convert("RGBA"))
    except PNG_ERRORS as error:
        raise UserError(f"{file} is a damaged PNG file or was cut off: {error}") from None
    if (pixels[..., :3] != pixels[..., :1]).any() or (pixels[..., 3] != 255).any():
        raise UserError(f"{file} has colours or is transparent; grey images are wanted")
    return pixels[..., 0]


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a .npz file, by name, or the one of a .npy file, named "images"."""
    read_bytes(path, 1)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or not a whole {path.suffix} file of numbers: {error}") from None


def _read_idx_file(path: Path) -> Bytes:
    """The array of an IDX file, compressed or not."""
    content = read_bytes(path, LARGEST_IDX)
    try:
        return parse_idx(content, path.name, LARGEST_IDX)
    except SourceError as error:
        raise UserError(f"{path}: {error}; known are .npz, .npy, .png, IDX files, and folders of .png") from None


def read_bytes(path: Path, most: int) -> bytes:
    """The first bytes of a file; raises a `UserError` if it is missing or unreadable."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def as_images(values: NDArray[Any], where: str) -> Bytes:
    """Values as images of shape (N, H, W), uint8; integers from 0 to 255 of another type are accepted too.

    Raises:
        UserError: If other values occur, or the shape is not that of one image or of images with one channel.
    """
    if values.ndim == 4 and 1 in (values.shape[1], values.shape[3]):
        values = values.squeeze(1 if values.shape[1] == 1 else 3)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or 0 in values.shape:
        raise UserError(f"{where} has the shape {values.shape}; grey images have (N, height, width), at least one")
    return _as_bytes(values, where)


def as_labels(values: NDArray[Any], where: str) -> Bytes:
    """Labels with shape (N,), uint8; the shape (N, 1) is accepted too."""
    values = values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1 or not len(values):
        raise UserError(f"{where} has the shape {values.shape}; labels have (N,), at least one")
    return _as_bytes(values, where)


def _as_bytes(values: NDArray[Any], where: str) -> Bytes:
    """Integers from 0 to 255 as uint8; raises a `UserError` for anything else."""
    if values.dtype.kind not in "ui":
        raise UserError(f"{where} is {values.dtype}, not 8-bit; give whole numbers from 0 to 255 (dtype uint8)")
    if values.min() < 0 or values.max() > 255:
        raise UserError(f"{where} is not 8-bit: its values go from {values.min()} to {values.max()}, not 0 to 255")
    return values.astype(np.uint8)
