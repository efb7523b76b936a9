"""8-bit grey images from files of the usual kinds: .npz, .npy, IDX (also .gz), PNG, and folders of PNG files."""

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
# Where a PNG file says how many bits a value has.
PNG_DEPTH = 24
LARGEST_IDX = 1 << 31


def read_pictures(path: Path, array: str | None = None) -> tuple[Bytes, list[str]]:
    """Images of shape (N, H, W), uint8, and a name for each: its file in a folder, else its number.

    Args:
        path: A .npz, .npy, IDX or PNG file, or a folder with PNG files at any depth, taken in the order of their names.
        array: Which array of a .npz file; left out, "images", "test_images", or the only one.

    Raises:
        UserError: If there is nothing to read, or what is there is not 8-bit grey images of one size.
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
    """The PNG files of a folder, at any depth, by name; none is a `UserError`."""
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
    """The image of a PNG file, with shape (H, W); red, green and blue may be there if they are alike."""
    from matplotlib.image import imread  # it takes a third of a second to import

    content = read_bytes(file)
    if not content.startswith(PNG_START) or len(content) <= PNG_DEPTH:
        raise UserError(f"{file} is not a PNG file")
    if content[PNG_DEPTH] != 8:
        raise UserError(f"{file} has {content[PNG_DEPTH]} bits a value; 8-bit PNG files are wanted")
    if PNG_END not in content:
        raise UserError(f"{file} is a damaged PNG file: it is cut off")
    try:
        # As shares of 255, which a float32 tells apart.
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
    found = _load(path)
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise UserError(f"{path} is not a .npz file")
    try:
        with found:
            return {name: found[name] for name in found.files}
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
    """Values as images of shape (N, H, W), uint8; whole numbers from 0 to 255 of another type are taken too.

    Raises:
        UserError: If the values are others, or have another shape than one image, or images of one channel.
    """
    if values.ndim == 4 and 1 in (values.shape[1], values.shape[3]):
        values = values.squeeze(1 if values.shape[1] == 1 else 3)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or 0 in values.shape:
        raise UserError(f"{where} has the shape {values.shape}; grey images have (N, height, width), at least one")
    return as_bytes(values, where)


def as_bytes(values: NDArray[Any], where: str) -> Bytes:
    """Whole numbers from 0 to 255 as uint8; anything else is a `UserError`."""
    if values.dtype.kind not in "ui":
        raise UserError(f"{where} is {values.dtype}, not 8-bit; give whole numbers from 0 to 255 (dtype uint8)")
    if values.min() < 0 or values.max() > 255:
        raise UserError(f"{where} is not 8-bit: its values go from {values.min()} to {values.max()}, not 0 to 255")
    return values.astype(np.uint8)


def read_bytes(path: Path, most: int = -1) -> bytes:
    """The content of a file; one that is missing or not to be read is a `UserError`."""
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
    """The array that is asked for, or that must be meant."""
    names = [wanted] if wanted else [name for name in ("images", "test_images") if name in arrays] or [*arrays]
    if (wanted and wanted not in arrays) or (len(names) != 1 and names[:1] != ["images"]):
        there = ", ".join(arrays) or "none"
        raise UserError(f"{path} has these arrays: {there}; name the one with the images by --array")
    return arrays[names[0]]


def _size(image: Bytes) -> str:
    return "x".join(map(str, image.shape[::-1]))
