"""Reads 8-bit grey images from .npz, .npy, IDX (also .gz) and PNG files, and custom data sets made of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.console import UserError
from pipeline.core.dataset import ARRAYS, Bytes
from pipeline.core.progress import Progress
from pipeline.sources.published import FILES, find_idx, parse_idx

LARGEST_SIDE = 64
LARGEST_IDX = 1 << 31
KINDS = (
    f"a .npz file with {', '.join(ARRAYS)}; a folder with {', '.join(FILES)}, plain or .gz; or a folder with "
    "train/<class>/*.png and test/<class>/*.png"
)
PNG_START = b"\x89PNG\r\n\x1a\n"


def read_custom(path: Path) -> tuple[dict[str, Bytes], tuple[str, ...]]:
    """The arrays of a data set, by the names in `ARRAYS`, and its class names.

    Labels are renumbered from 0; the class names are the original labels or the names of the folders.

    Args:
        path: One of the `KINDS`.

    Raises:
        UserError: If the path has none of these forms, or the data set cannot train and test a model. It needs square
            8-bit images of one size, one label per image, and 2 to 256 classes, each in both parts.
    """
    if not path.exists():
        raise UserError(f"{path} is not there; a data set of your own is {KINDS}")
    has_parts = (path / "train").is_dir() or (path / "test").is_dir()
    arrays = _from_pngs(path) if has_parts else _from_arrays(path)
    train, test = arrays["train_images"], arrays["test_images"]
    height, width = train.shape[1:]
    if test.shape[1:] != train.shape[1:]:
        raise UserError(f"{path}: test images are {test.shape[2]}x{test.shape[1]} pixels, the others {width}x{height}")
    if height != width or not 2 <= height <= LARGEST_SIDE:
        raise UserError(f"{path}: images are {width}x{height} pixels; square ones from 2 to {LARGEST_SIDE} are taken")
    labels = {part: arrays[f"{part}_labels"].astype(str).tolist() for part in ("train", "test")}
    class_names = sorted({*labels["train"], *labels["test"]}, key=_numbers_first)
    if not 2 <= len(class_names) <= 256:
        raise UserError(f"{path} has {len(class_names)} classes; from 2 to 256 are taken")
    for part, of_part in labels.items():
        if (count := len(arrays[f"{part}_images"])) != len(of_part):
            raise UserError(f"{path} has {count} {part} images, but {len(of_part)} labels for them")
        if empty := [name for name in class_names if name not in of_part]:
            raise UserError(f"{path} has no {part} images of the class {', '.join(empty)}; each class needs some")
        arrays[f"{part}_labels"] = np.array([*map(class_names.index, of_part)], np.uint8)
    return arrays, tuple(class_names)


def _numbers_first(class_name: str) -> tuple[float, str]:
    """The key that sorts names of classes, numbers in numeric order."""
    return int(class_name) if class_name.isdecimal() else math.inf, class_name


def _from_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file or of IDX files, with their original labels."""
    if path.is_dir():
        paths = {file: find_idx(file, path) for file in FILES}
        names, contents = FILES, {file: _read_arrays(idx)["images"] for file, idx in paths.items() if idx}
    elif path.suffix.lower() == ".npz":
        names, contents = ARRAYS, _read_arrays(path)
    else:
        raise UserError(f"{path} is no .npz file; a data set of your own is {KINDS}")
    if missing := [name for name in names if name not in contents]:
        raise UserError(f"{path} lacks {', '.join(missing)}; a data set of your own is {KINDS}")
    return {
        array: as_bytes(contents[name], f"{path}: {array}", images=array.endswith("images"))
        for array, name in zip(ARRAYS, names, strict=True)
    }


def _from_pngs(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of PNG files, sorted by class and file name; the labels are the names of their folders."""
    files: dict[str, list[tuple[Path, str]]] = {}
    for part in ("train", "test"):
        folders = sorted((path / part).glob("*/"), key=lambda folder: _numbers_first(folder.name))
        files[part] = [(file, folder.name) for folder in folders for file in png_files(folder)]
        if not folders:
            raise UserError(f"{path / part} holds no folders of classes; a data set of your own is {KINDS}")
    arrays: dict[str, NDArray[Any]] = {}
    for part, of_part in files.items():
        arrays[f"{part}_images"] = read_pngs([file for file, _ in of_part])
        arrays[f"{part}_labels"] = np.array([class_name for _, class_name in of_part])
    return arrays


def read_pictures(path: Path, array: str | None = None) -> tuple[Bytes, list[str]]:
    """Images of shape (N, H, W), uint8, and a name for each: its path in a folder, else its index.

    Args:
        path: A .npz, .npy, IDX or PNG file, or a folder with PNG files at any depth, read in the order of their names.
        array: The name of an array in a .npz file; by default "images", "test_images", or the only array.

    Raises:
        UserError: If the path contains nothing readable, or not 8-bit grey images of one size.
    """
    if path.is_dir():
        files = png_files(path)
        return read_pngs(files), [file.relative_to(path).as_posix() for file in files]
    if path.suffix.lower() == ".png":
        return read_pngs([path]), [path.name]
    arrays = _read_arrays(path)
    wanted = [array] if array else ["images", "test_images", *(arrays if len(arrays) == 1 else ())]
    name = next((name for name in wanted if name in arrays), None)
    if name is None:
        available = ", ".join(arrays) or "none"
        raise UserError(f"{path} has these arrays: {available}; name the one with the images by --array")
    images = as_bytes(arrays[name], str(path), images=True)
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
    with _opened(file, " is a damaged PNG file or was cut off: {}") as stream:
        if stream.read(len(PNG_START)) != PNG_START:
            raise UserError(f"{file} is not a PNG file")
        with Image.open(file, formats=["PNG"]) as png:
            png.verify()
        with Image.open(file, formats=["PNG"]) as png:
            # Pillow converts other depths to 8 bits; the file's is the number in the name of its encoding: "RGB;16B".
            if depth := re.search(r"\d+", str(png.tile[0].args)):
                raise UserError(f"{file} has {depth[0]} bits a value; 8-bit PNG files are wanted")
            pixels = np.asarray(png.convert("RGBA"))
    if (pixels[..., :3] != pixels[..., :1]).any() or (pixels[..., 3] != 255).any():
        raise UserError(f"{file} has colours or is transparent; grey images are wanted")
    return pixels[..., 0]


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a .npz file, by name, or the one of a .npy or IDX file, named "images"."""
    if path.suffix.lower() not in (".npz", ".npy"):
        with _opened(path, ": {}; known are .npz, .npy, .png, IDX files, and folders of .png") as file:
            return {"images": parse_idx(file.read(LARGEST_IDX), path.name, LARGEST_IDX)}
    with _opened(path, f" is damaged or not a whole {path.suffix} file of numbers: {{}}") as file:
        loaded = np.load(file, allow_pickle=False)
        return {"images": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)


@contextmanager
def _opened(path: Path, refusal: str) -> Iterator[IO[bytes]]:
    """Open a file; raises a `UserError` if it cannot be read, or one with ``refusal`` if the block finds it damaged."""
    try:
        with path.open("rb") as file:
            yield file
    except UserError:
        raise
    except Exception as error:
        # NumPy, zipfile and Pillow raise errors of a dozen kinds for a damaged file.
        unreadable = getattr(error, "strerror", None)
        reason = f" cannot be read: {unreadable}" if unreadable else refusal.format(error)
        raise UserError(f"{path}{reason}") from None


def as_bytes(values: NDArray[Any], where: str, *, images: bool) -> Bytes:
    """Values as uint8: images of shape (N, H, W), or labels of shape (N,).

    Integers from 0 to 255 of another type, a channel or column axis of length 1, and a single image are accepted too.

    Raises:
        UserError: If the values or their shape are others.
    """
    rank, wanted = (3, "grey images have (N, height, width)") if images else (1, "labels have (N,)")
    if images and values.ndim == 2:
        values = values[None]
    if values.ndim == rank + 1 and 1 in (values.shape[1], values.shape[-1]):
        values = values.squeeze(1 if values.shape[1] == 1 else -1)
    if values.ndim != rank or 0 in values.shape:
        raise UserError(f"{where} has the shape {values.shape}; {wanted}, at least one")
    if values.dtype.kind not in "ui":
        raise UserError(f"{where} is {values.dtype}, not 8-bit; give whole numbers from 0 to 255 (dtype uint8)")
    if values.min() < 0 or values.max() > 255:
        raise UserError(f"{where} is not 8-bit: its values go from {values.min()} to {values.max()}, not 0 to 255")
    return values.astype(np.uint8)
