"""What PyTorch offers works on every flow: compilation, function transforms, autocast, the meta device, copies."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from random_flows import random_gaussian, random_histogram, random_learned, random_lu_net, randomise_, seeded
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from lunet import Diagnostics, Flow, Histogram, ImageFlow, LUNet, RealNVP

FLOWS: dict[str, Flow] = {
    "lunet": random_lu_net(4, layers=2),
    "lunet-learned": random_learned(4, layers=2),
    "realnvp": randomise_(RealNVP((1, 4, 4), (1, 1, 1), planes=2, blocks=1, shared=True)),
    "gaussian": random_gaussian(4),
    "histogram": random_histogram(4, levels=8),
}
pytestmark = pytest.mark.parametrize("name", FLOWS)


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[Flow, Tensor]:
    """A flow in eval mode and rows where it has density."""
    flow = copy.deepcopy(FLOWS[name]).to(dtype)
    draw = torch.rand if isinstance(flow, Histogram) else torch.randn
    return flow, draw(6, flow.features, generator=seeded(1), dtype=torch.float64).to(dtype)


# torch.compile, which in torch 2.11 does what torch itself deprecates

deprecated = pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated")


@deprecated
@torch.no_grad()
def test_compiles_into_one_graph(name: str) -> None:
    flow, x = make(name)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(flow.log_prob, backend="eager", fullgraph=True)(x), flow.log_prob(x))
    torch.testing.assert_close(torch.compile(flow.inverse, backend="eager", fullgraph=True)(x), flow.inverse(x))


@deprecated
def test_compiled_gradients_are_those_of_the_flow(name: str) -> None:
    if name == "histogram":
        pytest.skip("the density of a histogram is constant within each bin")
    flow, x = make(name)
    x.requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(lambda x: flow.log_prob(x).sum(), backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    (found,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# torch.func


def test_vmap_over_sets_of_rows(name: str) -> None:
    if name == "histogram":
        pytest.skip("a histogram looks at its values")
    flow, x = make(name)
    flow.train()  # looking at values, as eval mode does, is not for a transform
    sets = x.reshape(3, 2, -1)
    found = vmap(flow.log_prob)(sets)
    torch.testing.assert_close(found, torch.stack([flow.log_prob(rows) for rows in sets]), rtol=1e-4, atol=1e-4)


def test_jacrev_gives_the_log_determinant(name: str) -> None:
    flow, x = make(name, torch.float64)
    flow.train()
    for row in x[:2]:
        jacobian = jacrev(lambda v: flow(v[None]).z[0])(row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, flow(row[None]).log_det[0])


def test_gradients_for_each_row(name: str) -> None:
    flow, x = make(name)
    flow.train()
    parameters = {key: value.detach() for key, value in flow.named_parameters()}
    if not parameters:
        pytest.skip("a model in closed form has no parameters")

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return -functional_call(flow, parameters, (row[None],)).log_det.sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    together = grad(lambda p: -functional_call(flow, p, (x,)).log_det.sum())(parameters)
    for key, value in together.items():
        torch.testing.assert_close(each[key].sum(0), value, rtol=1e-3, atol=1e-3)


# Autocast


@torch.no_grad()
def test_log_probs_stay_float32_under_autocast(name: str) -> None:
    flow, x = make(name)
    image_flow = ImageFlow(flow, (1, 1, flow.features), None if isinstance(flow, Histogram) else 1e-6)
    images = torch.randint(256, (6, 1, 1, flow.features), generator=seeded(), dtype=torch.uint8)
    expected = flow.log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(x)
        y, log_slope = image_flow.preprocess(images, seeded())
        found = flow.log_prob(x)
    assert {tensor.dtype for tensor in (z, log_det, y, log_slope, found)} == {torch.float32}
    exact = not isinstance(flow, RealNVP)  # its networks, and they alone, run in bfloat16
    if exact:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(found, expected, rtol=0.1, atol=1.0)


# Devices, copies and states


def test_on_the_meta_device(name: str) -> None:
    flow, x = make(name)
    if isinstance(flow, Histogram):
        pytest.skip("a histogram looks at its values")
    flow.to("meta")
    assert flow.log_prob(x.to("meta")).shape == (6,)
    assert flow.sample(3).device.type == "meta"


@torch.no_grad()
def test_survives_pickle_and_torch_save(name: str) -> None:
    flow, x = make(name)
    again = pickle.loads(pickle.dumps(flow))
    assert torch.equal(again.log_prob(x), flow.log_prob(x))
    buffer = io.BytesIO()
    torch.save(flow.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert state.keys() == flow.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in flow.state_dict().items())


# The distribution


@torch.no_grad()
def test_distribution_is_the_flow(name: str) -> None:
    flow, x = make(name)
    distribution = flow.distribution()
    assert (distribution.batch_shape, distribution.event_shape) == (torch.Size([]), torch.Size([flow.features]))
    assert torch.equal(distribution.log_prob(x), flow.log_prob(x))
    assert distribution.log_prob(x.reshape(3, 2, -1)).shape == (3, 2)
    assert distribution.log_prob(x[0]).shape == ()
    torch.manual_seed(3)
    draws = distribution.sample((4, 2))
    torch.manual_seed(3)
    assert torch.equal(draws.flatten(0, 1), flow.sample(8))


def test_rsample_carries_gradients(name: str) -> None:
    flow, _ = make(name)
    if not list(flow.parameters()):
        pytest.skip("a model in closed form has no parameters")
    flow.distribution().rsample((5,)).square().sum().backward()
    reached = [parameter.grad is not None and bool((parameter.grad != 0).any()) for parameter in flow.parameters()]
    assert all(reached)


# Temperature


@torch.no_grad()
def test_temperature_is_the_spread_of_the_latents(name: str) -> None:
    flow, _ = make(name, torch.float64)
    half, whole = flow.sample(50, seeded(), temperature=0.5), flow.sample(50, seeded())
    torch.testing.assert_close(flow(half).z, flow(whole).z / 2, rtol=1e-6, atol=1e-6)
    assert torch.equal(flow.sample(3, seeded(), temperature=0.0)[0], flow.sample(3, seeded(1), temperature=0.0)[2])
    draws, log_prob = flow.sample_and_log_prob(5, seeded(), temperature=0.5)
    assert torch.equal(log_prob, flow.log_prob(draws))
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature is"):
            flow.sample(1, temperature=wrong)


# Diagnostics


def test_diagnostics_measure_the_round_trip(name: str) -> None:
    flow, x = make(name)
    single, double = flow.diagnostics(x), flow.double().diagnostics(x.double())
    assert isinstance(single, Diagnostics)
    assert double.latent_error < 1e-8
    assert single.latent_error < 1e-2
    assert [layer.name for layer in single.layers] == (
        [f"layers.{index}" for index in range(len(flow.layers))] if isinstance(flow, LUNet) else []
    )
    assert flow.diagnostics(x.double()[:0]).latent_error == 0


def test_image_diagnostics_count_the_pixels(name: str, tmp_path: Path) -> None:
    flow, _ = make(name)
    image_flow = ImageFlow(flow, (1, 1, flow.features), None if isinstance(flow, Histogram) else 0.05).eval()
    images = torch.randint(256, (40, 1, 1, flow.features), generator=seeded(), dtype=torch.uint8)
    found = image_flow.diagnostics(images)
    assert found.pixels_exact == found.pixels_within_one == 1
    assert found.layers == flow.diagnostics(image_flow.preprocess(images, seeded())[0]).layers
