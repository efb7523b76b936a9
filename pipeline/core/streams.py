"""Random streams by name, so that what is fitted and what tests it never draw the same numbers.

A test image that has the noise of a training image is scored too well: where pixels are all black, the noise is all
that there is to learn. Measurements of time and memory do not depend on their numbers and have no streams.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Stream = Literal[
    "weights", "split", "start", "order", "training", "released pixels", "validation", "diagnosis",
    "test", "round trip", "precision", "classification", "samples", "interpolations", "directions",
    "base fit", "base test", "class samples", "closed form", "identity",
    "mixture training", "mixture test", "mixture fit",
    "use sample", "use score",
]  # fmt: skip


def stream_seed(stream: Stream, seed: int, model: str = "all") -> int:
    """The seed of a stream, from 0 to 2^32 - 1, as many as a generator on the CPU distinguishes.

    Args:
        stream: The name of the stream.
        seed: The seed of the run.
        model: The name of the model, where each has its own stream.
    """
    return int.from_bytes(hashlib.sha256(f"{stream}/{seed}/{model}".encode()).digest()[:4], "big")


def generator(stream: Stream, seed: int, model: str = "all", device: torch.device | str = "cpu") -> torch.Generator:
    """A generator at the start of a stream; see `stream_seed`."""
    return torch.Generator(device).manual_seed(stream_seed(stream, seed, model))
