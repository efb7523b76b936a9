"""The compared models: shapes of log-densities, gradients, numbers of parameters, and missing libraries."""

from __future__ import annotations

import pytest
import torch

from benchmarks.contestants import FEATURES, IMAGES, VECTORS, Contestant, available

CONTESTANTS = {**VECTORS, **IMAGES}


@pytest.mark.filterwarnings(r"ignore:torch\.lu is deprecated")
@pytest.mark.parametrize("name", CONTESTANTS)
def test_log_densities_of_a_batch_reach_all_parameters(name: str) -> None:
    library, make = CONTESTANTS[name]
    if library is not None:
        pytest.importorskip(library, reason=f"needs {library}")
    contestant = make()
    x = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(0))
    log_prob = contestant.log_prob(x)
    assert log_prob.shape == (3,)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    trainable = [parameter for parameter in contestant.model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trainable)
    assert contestant.parameters() == sum(parameter.numel() for parameter in trainable)


@pytest.mark.filterwarnings(r"ignore:torch\.lu is deprecated")
def test_other_models_have_comparable_numbers_of_parameters() -> None:
    pytest.importorskip("normflows", reason="needs normflows")
    ours, glow = (IMAGES[name][1]().parameters() for name in ("realnvp", "normflows Glow"))
    assert glow == pytest.approx(ours, rel=0.05)
    lunet, floor = (VECTORS[name][1]().parameters() for name in ("lunet", "8 linear layers"))
    assert floor == pytest.approx(2 * lunet, rel=0.001)


def test_a_missing_library_is_reported() -> None:
    def fail() -> Contestant:
        raise AssertionError

    assert available({"own": (None, fail), "theirs": ("no_such_library", fail)}) == (["own"], ["theirs"])
