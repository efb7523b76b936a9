"""The arithmetic of float32 numbers: strict by default, or faster and less exact where a recipe asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.core.params import Precision


@contextmanager
def arithmetic(precision: Precision = "float32") -> Iterator[None]:
    """Compute matrix products and convolutions of float32 numbers in TF32 if asked for, else as IEEE 754 has it.

    On a GPU, cuDNN's convolutions use TF32 unless they are told not to. On a CPU there is no TF32, and no difference.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set("high" if precision == "tf32" else "highest", convolutions=precision == "tf32")
    try:
        yield
    finally:
        _set(before[0], convolutions=before[1])


def networks_in(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which the networks of a RealNVP, its only convolutions, compute in bfloat16 if asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def _set(products: str, *, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
