"""Reads 8-bit grey images from .npz, .npy, IDX (also .gz) and PNG files, and from folders of PNG files."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pipeline.core.console import UserError
from pipeline.core.dataset import Bytes
from pipeline.core.progress import Progress
from pipeline.sources.published import SourceError, parse_idx, read_idx

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_ERRORS = (OSError, ValueError, SyntaxError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)
LARGEST_IDX = 1 << 31


def read_pictures(path: Path, array: str | None = None) -> tuple[Bytes, list[str]]:
    """Images of shape (N, H, W), uint8, and a name for each: its path in a folder, else its index.

    Args:
        path: A .npz, .npy, IDX or PNG file, or a folder with PNG files at any depth, read in the order of their names.
        array: The name of an array in a .npz file; by default "images", "test_images", or the only array.

    Raises:
        UserError: If the path contains nothing readable, or not 8-bit grey images of one size.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".png":
        files = png_files(path) if path.is_dir() else [path]
        return read_pngs(files), [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files]
    is_numpy = path.suffix.lower() in (".npz", ".npy")
    images = as_images(_chosen(read_arrays(path), array, path) if is_numpy else read_idx_file(path), str(path))
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
            with _open_png(file) as png:
                size = images[0].shape[::-1] if images else png.size
                if png.size != size:
                    sizes = f"{png.width}x{png.height} pixels, {files[0].name} {size[0]}x{size[1]}"
                    raise UserError(f"{file} is {sizes}; one size is needed")
                images.append(_grey(png, file))
            progress.step(file.name)
    return np.stack(images)


@contextmanager
def _open_png(file: Path) -> Iterator[ImageFile.ImageFile]:
    """A whole PNG file, not yet decoded; an error of its decoding becomes a `UserError` too."""
    if read_bytes(file, most=len(PNG_START)) != PNG_START:
        raise UserError(f"{file} is not a PNG file")
    try:
        with Image.open(file, formats=["PNG"]) as png:
            png.verify()
        with Image.open(file, formats=["PNG"]) as png:
            yield png
    except PNG_ERRORS as error:
        raise UserError(f"{file} is a damaged PNG file or was cut off: {error}") from None


def _grey(png: ImageFile.ImageFile, file: Path) -> Bytes:
    """The values of a PNG file, with shape (H, W); colour channels are accepted if they are equal."""
    # Pillow converts other depths to 8 bits; the file's own is the number in the name of its encoding, as in "RGB;16B".
    depth = re.search(r"\d+", str(png.tile[0].args))
    if depth:
        raise UserError(f"{file} has {depth[0]} bits a value; 8-bit PNG files are wanted")
    pixels = np.asarray(png.convert("RGBA"))
    if (pixels[..., :3] != pixels[..., :1]).any() or (pixels[..., 3] != 255).any():
        raise UserError(f"{file} has colours or is transparent; grey images are wanted")
    return pixels[..., 0]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a .npz file, by name, or the one of a .npy file, named "images"."""
    read_bytes(path, most=4)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or not a whole {path.suffix} file of numbers: {error}") from None


def read_idx_file(path: Path) -> Bytes:
    """The array of an IDX file, compressed or not."""
    read_bytes(path, most=4)
    try:
        with path.open("rb") as stream:
            return parse_idx(read_idx(stream, path.name, LARGEST_IDX), path.name)
    except SourceError as error:
        raise UserError(f"{path}: {error}; known are .npz, .npy, .png, IDX files, and folders of .png") from None


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
    return as_bytes(values, where)


def as_bytes(values: NDArray[Any], where: str) -> Bytes:
    """Integers from 0 to 255 as uint8; raises a `UserError` for anything else."""
    if values.dtype.kind not in "ui":
        raise UserError(f"{where} is {values.dtype}, not 8-bit; give whole numbers from 0 to 255 (dtype uint8)")
    if values.min() < 0 or values.max() > 255:
        raise UserError(f"{where} is not 8-bit: its values go from {values.min()} to {values.max()}, not 0 to 255")
    return values.astype(np.uint8)


def read_bytes(path: Path, most: int = -1) -> bytes:
    """The content of a file; raises a `UserError` if it is missing or unreadable."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _chosen(arrays: Mapping[str, NDArray[Any]], wanted: str | None, path: Path) -> NDArray[Any]:
    """The requested array, or the only possible one."""
    only = arrays if len(arrays) == 1 else ()
    for name in [wanted] if wanted else ["images", "test_images", *only]:
        if name in arrays:
            return arrays[name]
    available = ", ".join(arrays) or "none"
    raise UserError(f"{path} has these arrays: {available}; name the one with the images by --array")
