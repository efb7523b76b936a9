from __future__ import annotations

import pytest
import torch
from random_flows import CPU_DTYPES, random_learned, random_lu_net, seeded
from torch import Tensor

from lunet import LUNet

FLOWS = {
    "leaky softplus": lambda: random_lu_net(784),
    "one layer": lambda: random_lu_net(7, layers=1),
    "learned": lambda: random_learned(20, layers=4),
    "deep": lambda: random_lu_net(20, layers=12, slope=0.5),
}


def gradients(flow: LUNet, x: Tensor) -> dict[str, Tensor]:
    """The gradients of a loss with respect to the data and every parameter."""
    x = x.clone().requires_grad_()
    flow.zero_grad()
    z, log_det = flow(x)
    (z.square().sum(1) / 2 - log_det).mean().backward()
    assert x.grad is not None
    return {"x": x.grad} | {
        name: parameter.grad for name, parameter in flow.named_parameters() if parameter.grad is not None
    }


def saved_values(flow: LUNet, x: Tensor) -> int:
    """The number of activation values that a forward pass saves for the backward pass."""
    sizes: dict[int, int] = {}
    parameters = {parameter.data_ptr() for parameter in flow.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        flow.train()(x)
    return sum(sizes.values())


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("name", FLOWS)
def test_gradients_agree_with_the_plain_backward_pass(name: str, dtype: torch.dtype) -> None:
    flow = FLOWS[name]().to(dtype).train()
    x = torch.randn(9, flow.features, generator=seeded(), dtype=dtype)
    plain, z = gradients(flow, x), flow(x)[0].detach()
    flow.reversible = True
    recomputed = gradients(flow, x)
    assert torch.equal(flow(x)[0], z)
    assert list(recomputed) == list(plain)
    # Twelve layers lose a few digits in the backward pass.
    tolerance = 1e5 * torch.finfo(dtype).eps
    for key, expected in plain.items():
        torch.testing.assert_close(recomputed[key], expected, rtol=0, atol=tolerance * float(expected.abs().amax()))


def test_memory_does_not_grow_with_the_number_of_layers() -> None:
    x = torch.randn(50, 30, generator=seeded())
    plain = {layers: saved_values(random_lu_net(30, layers), x) for layers in (4, 16)}
    assert plain[16] > 3 * plain[4]
    for layers in plain:
        flow = random_lu_net(30, layers)
        flow.reversible = True
        assert saved_values(flow, x) == x.numel()


def test_weights_modified_before_the_backward_pass_raise() -> None:
    flow = random_lu_net(5).train()
    flow.reversible = True
    loss = flow(torch.randn(3, 5, generator=seeded()))[0].sum()
    with torch.no_grad():
        flow.layers[1].lu.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_raise() -> None:
    flow = random_lu_net(5).train()
    flow.reversible = True
    x = torch.randn(3, 5, generator=seeded()).requires_grad_()
    (gradient,) = torch.autograd.grad(flow(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_values_are_the_same_without_gradients() -> None:
    flow = random_lu_net(5)
    x = torch.randn(3, 5, generator=seeded())
    with torch.no_grad():
        z = flow(x)[0]
        flow.reversible = True
        assert torch.equal(flow(x)[0], z)
    torch.testing.assert_close(flow.inverse(z), x, rtol=1e-4, atol=1e-4)
