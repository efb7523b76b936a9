"""Features of PyTorch on every flow: compilation, function transforms, autocast, the meta device, pickling."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from random_flows import copy_with_rows, seeded, small_flows
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from lunet import Histogram, ImageFlow, RealNVP

FLOWS = small_flows()
pytestmark = pytest.mark.parametrize("name", FLOWS)

# torch.compile

# torch 2.11's compiler uses what torch itself deprecates.
deprecated = pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated")


@deprecated
@torch.no_grad()
def test_compiles_into_one_graph(name: str) -> None:
    flow, x = copy_with_rows(FLOWS[name])
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(flow.log_prob, backend="eager", fullgraph=True)(x), flow.log_prob(x))
    torch.testing.assert_close(torch.compile(flow.inverse, backend="eager", fullgraph=True)(x), flow.inverse(x))


@deprecated
def test_compiled_gradients_are_those_of_the_flow(name: str) -> None:
    if name == "histogram":
        pytest.skip("the density of a histogram is constant within each bin")
    flow, x = copy_with_rows(FLOWS[name])
    x.requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(lambda x: flow.log_prob(x).sum(), backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    (gradient,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


# torch.func


def test_vmap_over_batches(name: str) -> None:
    if name == "histogram":
        pytest.skip("a histogram reads its values")
    flow, x = copy_with_rows(FLOWS[name])
    flow.train()  # eval mode reads values, which a transform does not allow
    batches = x.reshape(3, 2, -1)
    expected = torch.stack([flow.log_prob(batch) for batch in batches])
    torch.testing.assert_close(vmap(flow.log_prob)(batches), expected, rtol=1e-4, atol=1e-4)


def test_jacrev_gives_the_log_determinant(name: str) -> None:
    flow, x = copy_with_rows(FLOWS[name], torch.float64)
    flow.train()
    for row in x[:2]:
        jacobian = jacrev(lambda v: flow(v[None]).z[0])(row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, flow(row[None]).log_det[0])


def test_per_row_gradients_add_up_to_the_gradient_of_the_batch(name: str) -> None:
    flow, x = copy_with_rows(FLOWS[name])
    flow.train()
    parameters = {key: value.detach() for key, value in flow.named_parameters()}
    if not parameters:
        pytest.skip("closed-form models have no parameters")

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return -functional_call(flow, parameters, (row[None],)).log_det.sum()

    per_row = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    total = grad(lambda p: -functional_call(flow, p, (x,)).log_det.sum())(parameters)
    for key, value in total.items():
        torch.testing.assert_close(per_row[key].sum(0), value, rtol=1e-3, atol=1e-3)


# Autocast


@torch.no_grad()
def test_log_probs_stay_float32_under_autocast(name: str) -> None:
    flow, x = copy_with_rows(FLOWS[name])
    image_flow = ImageFlow(flow, (1, 1, flow.features), None if isinstance(flow, Histogram) else 1e-6)
    images = torch.randint(256, (6, 1, 1, flow.features), generator=seeded(), dtype=torch.uint8)
    expected = flow.log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(x)
        y, log_slope = image_flow.preprocess(images, seeded())
        log_prob = flow.log_prob(x)
    assert {tensor.dtype for tensor in (z, log_det, y, log_slope, log_prob)} == {torch.float32}
    if isinstance(flow, RealNVP):  # only its networks run in bfloat16
        torch.testing.assert_close(log_prob, expected, rtol=0.1, atol=1.0)
    else:
        torch.testing.assert_close(log_prob, expected, rtol=1e-5, atol=1e-5)


# Devices and copies


def test_meta_device(name: str) -> None:
    flow, x = copy_with_rows(FLOWS[name])
    if isinstance(flow, Histogram):
        pytest.skip("a histogram reads its values")
    flow.to("meta")
    assert flow.log_prob(x.to("meta")).shape == (6,)
    assert flow.sample(3).device.type == "meta"


@torch.no_grad()
def test_pickle_and_torch_save_round_trip(name: str) -> None:
    flow, x = copy_with_rows(FLOWS[name])
    unpickled = pickle.loads(pickle.dumps(flow))
    assert torch.equal(unpickled.log_prob(x), flow.log_prob(x))
    buffer = io.BytesIO()
    torch.save(flow.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert state.keys() == flow.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in flow.state_dict().items())
