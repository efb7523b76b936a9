"""Reads 8-bit grey images from .npz, .npy, IDX (also .gz) and PNG files, and from folders of PNG files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.console import UserError
from pipeline.core.dataset import Bytes
from pipeline.core.progress import Progress
from pipeline.sources.published import SourceError, parse_idx, read_idx

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
# The offset of the bit depth in a PNG file.
PNG_DEPTH = 24
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
    if path.suffix.lower() == ".npz":
        images = as_images(_chosen(read_npz(path), array, path), str(path))
    elif path.suffix.lower() == ".npy":
        images = as_images(_load(path), str(path))
    else:
        images = as_images(read_idx_file(path), str(path))
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
            images.append(read_png(file))
            if images[-1].shape != images[0].shape:
                raise UserError(
                    f"{file} is {_size(images[-1])} pixels, {files[0].name} {_size(images[0])}; one size is needed"
                )
            progress.step(file.name)
    return np.stack(images)


def read_png(file: Path) -> Bytes:
    """The image of a PNG file, with shape (H, W); colour channels are accepted if they are equal."""
    from matplotlib.image import imread  # its import takes a third of a second

    content = read_bytes(file)
    if not content.startswith(PNG_START) or len(content) <= PNG_DEPTH:
        raise UserError(f"{file} is not a PNG file")
    if content[PNG_DEPTH] != 8:
        raise UserError(f"{file} has {content[PNG_DEPTH]} bits a value; 8-bit PNG files are wanted")
    if PNG_END not in content:
        raise UserError(f"{file} is a damaged PNG file: it is cut off")
    try:
        # imread returns float32 fractions of 255, which determine the bytes.
        values = np.rint(255 * imread(file, format="png")).astype(np.uint8)
    except (OSError, ValueError, SyntaxError, zlib.error) as error:
        raise UserError(f"{file} is a damaged PNG file: {error}") from None
    if values.ndim == 2:
        return values
    colours, opacity = values[..., :3], values[..., 3:]
    if (colours != colours[..., :1]).any() or (opacity != 255).any():
        raise UserError(f"{file} has colours or is transparent; grey images are wanted")
    return colours[..., 0]


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a .npz file, by name."""
    archive = _load(path)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path} is not a .npz file")
    try:
        with archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}") from None


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


def _load(path: Path) -> Any:
    read_bytes(path, most=4)
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a whole {path.suffix} file of numbers: {error}") from None


def _chosen(arrays: Mapping[str, NDArray[Any]], wanted: str | None, path: Path) -> NDArray[Any]:
    """The requested array, or the only possible one."""
    names = [wanted] if wanted else [name for name in ("images", "test_images") if name in arrays] or [*arrays]
    if (wanted and wanted not in arrays) or (len(names) != 1 and names[:1] != ["images"]):
        available = ", ".join(arrays) or "none"
        raise UserError(f"{path} has these arrays: {available}; name the one with the images by --array")
    return arrays[names[0]]


def _size(image: Bytes) -> str:
    return "x".join(map(str, image.shape[::-1]))
