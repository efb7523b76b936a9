"""A training step can be captured in a CUDA graph, as it does not synchronise with the host, and compiles into one."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from random_flows import random_learned, random_lu_net, randomise_, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lunet import Flow, ImageFlow, LUNet, NonFiniteError, RealNVP, unchecked

# Wide enough that an LU layer is multiplied block by block.
SHAPE = (1, 20, 20)
FLOWS: dict[str, Flow] = {
    "lunet": random_lu_net(400, layers=2),
    "lunet-learned": random_learned(400, layers=2),
    "realnvp": randomise_(RealNVP(SHAPE, (1, 1, 1), planes=2, blocks=1)),
}
# Operations that read a value from the device, or copy one to it.
FORBIDDEN = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.lift_fresh.default"}


class Operations(TorchDispatchMode):
    """Records the names of all operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def images() -> Tensor:
    return torch.randint(256, (6, *SHAPE), generator=seeded(), dtype=torch.uint8)


@pytest.mark.parametrize("name", FLOWS)
def test_step_reads_and_copies_no_value(name: str) -> None:
    model = ImageFlow(copy.deepcopy(FLOWS[name]), SHAPE).train()
    with Operations() as operations:
        model.bits_per_dim(images()).mean().backward()
        model.score(images()).bits.mean().backward()
    assert len(operations.names) > 20
    assert operations.names & FORBIDDEN == set()


def test_forbidden_operations_are_detected() -> None:
    with Operations() as operations:
        torch.ones(2).new_tensor(1.0)
        bool(torch.ones(2).nonzero().any())
    assert operations.names >= FORBIDDEN


def test_results_are_not_checked_during_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = cast("Tensor", SimpleNamespace(is_meta=False, is_cuda=True))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with Operations() as operations:
        LUNet(2)._require_finite(captured, "x", torch.full((1,), torch.nan))
    assert operations.names & FORBIDDEN == set()


@torch.no_grad()
@pytest.mark.parametrize("name", FLOWS)
def test_results_are_not_checked_in_an_unchecked_block(name: str) -> None:
    model = ImageFlow(copy.deepcopy(FLOWS[name]), SHAPE).eval()
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    with pytest.raises(NonFiniteError), Operations() as checked:
        model.bits_per_dim(images())
    with unchecked(), Operations() as operations:
        model.bits_per_dim(images())
        model.sample(3)
    assert "aten._local_scalar_dense.default" in checked.names
    assert operations.names & FORBIDDEN == set()
    with pytest.raises(NonFiniteError):
        model.bits_per_dim(images())


@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated")
@pytest.mark.parametrize("name", FLOWS)
def test_step_compiles_into_one_graph(name: str) -> None:
    model, batch = ImageFlow(copy.deepcopy(FLOWS[name]), SHAPE).train(), images()
    parameters = list(model.parameters())

    def loss(batch: Tensor) -> Tensor:
        return model.bits_per_dim(batch).mean() + model.score(batch).bits.mean()

    torch.compiler.reset()
    results = []
    for step in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(1)
        value = step(batch)
        results.append((value.detach(), torch.autograd.grad(value, parameters)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
