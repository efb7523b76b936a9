"""Grey images and their PNG files, written without the library that the project reads them with."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def gradients(count: int, side: int) -> NDArray[np.uint8]:
    """Square 8-bit images whose values count from 0 to 255 repeatedly."""
    return (np.arange(count * side * side) % 256).astype(np.uint8).reshape(count, side, side)


def write_png(path: Path, image: NDArray[Any]) -> None:
    """Write a grey PNG file with 8 or 16 bits per value, and create its parent folders."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = image.shape
    header = struct.pack(">2I5B", width, height, 8 * image.dtype.itemsize, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(image.dtype.newbyteorder(">")).tobytes() for row in image)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
