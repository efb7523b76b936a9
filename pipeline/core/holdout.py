"""Which training images are held out from training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.core.console import UserError
from pipeline.core.streams import generator


class Split(NamedTuple):
    """Indices of the images to train on, in a random order, and of the held-out ones."""

    training: Tensor
    heldout: Tensor


def split_indices(count: int, share: float, seed: int, model: str = "all") -> Split:
    """The split of a model's ``count`` training images, of which a share, above 0, is held out; the same in each call.

    Raises:
        UserError: If there are too few images.
    """
    order = torch.randperm(count, generator=generator("split", seed, model))
    size = max(1, round(share * count))
    if size >= count:
        raise UserError(f"{count} images are too few to train on and to hold some back; two are needed at least")
    return Split(order[size:], order[:size])
