from __future__ import annotations

import pytest
import torch

from pipeline.core.precision import arithmetic, networks_in


def flags() -> tuple[str, bool, bool]:
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


def test_float32_is_strict_unless_tf32_is_asked_for() -> None:
    default = flags()
    assert default[2]  # cuDNN's default is TF32
    with arithmetic():
        assert flags() == ("highest", False, False)
        with arithmetic("tf32"):
            assert flags() == ("high", True, True)
        assert flags() == ("highest", False, False)
        with arithmetic("bfloat16"):
            assert flags() == ("highest", False, False)
    assert flags() == default


def test_flags_are_restored_after_an_error() -> None:
    default = flags()
    with pytest.raises(ZeroDivisionError), arithmetic("tf32"):
        _ = 1 / 0
    assert flags() == default


def test_networks_compute_in_bfloat16_if_asked_for() -> None:
    convolution, x = torch.nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)
    cpu = torch.device("cpu")
    with networks_in("float32", cpu):
        assert convolution(x).dtype == torch.float32
    with networks_in("tf32", cpu):
        assert convolution(x).dtype == torch.float32
    with networks_in("bfloat16", cpu):
        assert convolution(x).dtype == torch.bfloat16
        assert x.log().dtype == torch.float32
