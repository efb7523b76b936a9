"""The pretend CUDA device: it refuses mixed devices, counts waits, and computes as the CPU does."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pretend_cuda import pretend_cuda
from pretend_tensors import Counts, MixedDevicesError, PretendTensor
from torch import Tensor, nn

from pipeline.measuring.stopwatch import synchronize

CUDA = torch.device("cuda")


@pytest.fixture
def gpu() -> Iterator[Counts]:
    with pretend_cuda() as counts:
        yield counts


@pytest.fixture
def x(gpu: Counts) -> Tensor:
    return torch.arange(-3.0, 3.0).view(2, 3).to("cuda")


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3).add_(x[0]),
        lambda x: torch.zeros(()).add_(x.sum()),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: nn.Linear(3, 3)(x),
        lambda x: x[torch.tensor([0])],
        lambda x: torch.ones(2)[x[:, 0].long()],
        lambda x: x.index_add(0, torch.tensor([0]), x[:1]),
        lambda x: x.uniform_(generator=torch.Generator()),
        lambda x: torch.randn(3, device=CUDA, generator=torch.Generator()),
    ],
)
def test_an_operation_on_both_devices_is_an_error(x: Tensor, mixed: Callable[[Tensor], object]) -> None:
    with pytest.raises(MixedDevicesError):
        mixed(x)


@pytest.mark.parametrize(
    "allowed",
    [
        lambda x: x + torch.tensor(1.0),
        lambda x: torch.tensor(1.0) * x,
        lambda x: x.masked_fill(x > 0, torch.tensor(1.0)),
        lambda x: x.sum() + x.new_tensor(1.0) + torch.tensor(1.0, device=CUDA),
        lambda x: x.new_zeros(3) + torch.zeros(3, device=CUDA) + torch.zeros_like(x),
        lambda x: torch.randn(3, device=CUDA, generator=torch.Generator(CUDA).manual_seed(0)),
        lambda x: x.copy_(torch.ones(2, 3)),
    ],
)
def test_scalars_on_the_cpu_and_copies_are_not(x: Tensor, allowed: Callable[[Tensor], Tensor]) -> None:
    assert allowed(x).device == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("wait", "operation"),
    [
        (lambda x: float(x[0, 0]), "_local_scalar_dense"),
        (lambda x: bool((x > 0).all()), "_local_scalar_dense"),
        (lambda x: x.cpu(), "_to_copy"),
        (lambda x: x.tolist(), "_to_copy"),
        (lambda x: torch.ones(3).to(x), "_to_copy"),
        (lambda x: torch.ones(2, 3).copy_(x), "copy_"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x[:, :2].inverse(), "_linalg_check_errors"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: torch.cuda.synchronize(), "synchronize"),
    ],
)
def test_what_waits_is_counted_once(gpu: Counts, x: Tensor, wait: Callable[[Tensor], object], operation: str) -> None:
    with gpu.of_block() as block:
        wait(x)
    assert block.waits == {f"outside lunet and pipeline {operation}": 1}


def test_what_does_not_wait_is_not_counted(gpu: Counts, x: Tensor) -> None:
    with gpu.of_block() as block:
        x.mul_(2).masked_fill(x > 0, 1.0)[0] = 3.0
        x.to(CUDA, torch.float64).to(torch.device("cuda", 0))
        x.to("cpu", non_blocking=True)
        torch.zeros(2).to("cpu")
    assert not block.waits
    assert block.operations["mul_"] == block.operations["gt"] == 1


def test_a_wait_has_the_line_of_our_code_that_asked_for_it(gpu: Counts) -> None:
    synchronize(CUDA)
    place, operation = next(iter(gpu.waits)).split()
    assert (place.partition(":")[0], operation) == ("pipeline/measuring/stopwatch.py", "synchronize")


def train(device: torch.device) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
    parameters = [*model.parameters()]
    model.to(device)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    noise = torch.Generator(device).manual_seed(0)
    for _ in range(3):
        loss = model(torch.randn(5, 1, 4, 4, generator=noise, device=device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    return copy.deepcopy(model).state_dict(), optimizer.state_dict()


def test_training_gives_what_it_gives_on_the_cpu_and_is_saved_on_its_device(gpu: Counts) -> None:
    expected, _ = train(torch.device("cpu"))
    assert not gpu.operations
    state = train(CUDA)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    weights, optimizer = torch.load(file, weights_only=True)
    for tensors in (state[0], weights):
        assert all(isinstance(tensor, PretendTensor) for tensor in tensors.values())
        assert all(torch.equal(tensors[name].cpu(), expected[name]) for name in expected)
    assert optimizer["state"][0]["exp_avg"].is_cuda


def test_autocast_lowers_convolutions_and_linear_maps(x: Tensor) -> None:
    layer = nn.Linear(3, 3).to(CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        lowered = layer(x)
    assert (lowered.dtype, layer(x).dtype) == (torch.bfloat16, torch.float32)
    lowered.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_the_random_state_of_the_device_is_restored(gpu: Counts) -> None:
    state = torch.cuda.get_rng_state()
    first = torch.randn(3, device=CUDA)
    torch.cuda.set_rng_state(state)
    assert torch.equal(first, torch.randn(3, device=CUDA))


def test_nothing_is_left_behind() -> None:
    def surroundings() -> tuple[object, ...]:
        functions = (torch.Generator, torch.tensor, Tensor.to, torch.accelerator.current_stream, nn.functional.linear)
        return (*functions, *vars(torch.cuda).items(), {*torch.serialization.get_safe_globals()})

    before = surroundings()
    with pretend_cuda():
        assert torch.cuda.is_available()
        assert surroundings() != before
    assert surroundings() == before
    assert "to" not in vars(Tensor)
    weight = nn.Linear(3, 3)(torch.ones(3, device="cpu")).sum()
    weight.backward()
    assert type(weight) is Tensor
