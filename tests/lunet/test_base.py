from __future__ import annotations

import pytest
import torch
from random_flows import copy_with_rows, seeded, small_flows

from lunet import Diagnostics, LUNet, standard_normal_log_prob

FLOWS = small_flows()
on_every_flow = pytest.mark.parametrize("name", FLOWS)

# Density


def test_standard_normal_log_prob_agrees_with_torch() -> None:
    z = torch.randn(9, 6, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(standard_normal_log_prob(z), torch.distributions.Normal(0, 1).log_prob(z).sum(1))


# Distribution


@on_every_flow
@torch.no_grad()
def test_distribution_agrees_with_the_flow(name: str) -> None:
    flow, x = copy_with_rows(FLOWS[name])
    distribution = flow.distribution()
    assert (distribution.batch_shape, distribution.event_shape) == (torch.Size([]), torch.Size([flow.features]))
    assert torch.equal(distribution.log_prob(x), flow.log_prob(x))
    assert distribution.log_prob(x.reshape(3, 2, -1)).shape == (3, 2)
    assert distribution.log_prob(x[0]).shape == ()
    torch.manual_seed(3)
    draws = distribution.sample((4, 2))
    torch.manual_seed(3)
    assert torch.equal(draws.flatten(0, 1), flow.sample(8))


@on_every_flow
def test_rsample_carries_gradients(name: str) -> None:
    flow, _ = copy_with_rows(FLOWS[name])
    if not list(flow.parameters()):
        pytest.skip("closed-form models have no parameters")
    flow.distribution().rsample((5,)).square().sum().backward()
    reached = [parameter.grad is not None and bool((parameter.grad != 0).any()) for parameter in flow.parameters()]
    assert all(reached)


# Temperature


@on_every_flow
@torch.no_grad()
def test_temperature_is_the_standard_deviation_of_the_latents(name: str) -> None:
    flow, _ = copy_with_rows(FLOWS[name], torch.float64)
    half, full = flow.sample(50, seeded(), temperature=0.5), flow.sample(50, seeded())
    torch.testing.assert_close(flow(half).z, flow(full).z / 2, rtol=1e-6, atol=1e-6)
    assert torch.equal(flow.sample(3, seeded(), temperature=0.0)[0], flow.sample(3, seeded(1), temperature=0.0)[2])
    draws, log_prob = flow.sample_and_log_prob(5, seeded(), temperature=0.5)
    assert torch.equal(log_prob, flow.log_prob(draws))
    for temperature in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature is"):
            flow.sample(1, temperature=temperature)


# Diagnostics


@on_every_flow
def test_diagnostics_measure_the_round_trip(name: str) -> None:
    flow, x = copy_with_rows(FLOWS[name])
    single, double = flow.diagnostics(x), flow.double().diagnostics(x.double())
    assert isinstance(single, Diagnostics)
    assert double.latent_error < 1e-8
    assert single.latent_error < 1e-2
    assert [layer.name for layer in single.layers] == (
        [f"layers.{index}" for index in range(len(flow.layers))] if isinstance(flow, LUNet) else []
    )
    assert flow.diagnostics(x.double()[:0]).latent_error == 0
