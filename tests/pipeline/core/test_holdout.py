from __future__ import annotations

import pytest
import torch

from pipeline.core.console import UserError
from pipeline.core.holdout import split_indices


def test_every_image_is_in_one_part_and_the_split_is_the_same_in_each_call() -> None:
    training, heldout = split_indices(100, 0.04, seed=3)
    assert len(heldout) == 4
    assert torch.equal(torch.cat([training, heldout]).sort().values, torch.arange(100))
    assert torch.equal(split_indices(100, 0.04, seed=3).heldout, heldout)
    assert not torch.equal(split_indices(100, 0.04, seed=4).heldout, heldout)
    assert not torch.equal(split_indices(100, 0.04, seed=3, model="7").heldout, heldout)


def test_one_image_is_held_out_at_least() -> None:
    assert [len(part) for part in split_indices(2, 0.001, seed=0)] == [1, 1]


def test_one_image_is_too_few() -> None:
    with pytest.raises(UserError, match="1 images are too few to train on and to hold some back"):
        split_indices(1, 0.1, seed=0)
