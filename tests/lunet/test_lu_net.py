from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from random_flows import correlated, random_lu, random_lu_net, seeded
from torch import Tensor

from lunet import Gaussian, LeakySoftplus, LULayer, LUNet

PAPER = (784, 4)


@pytest.fixture(scope="module")
def wide() -> LUNet:
    """The paper's network with random weights, in float64."""
    return random_lu_net(*PAPER).double()


def dense_jacobian(flow: LUNet, x: Tensor) -> Tensor:
    """The Jacobian of one row, multiplied out as diag(phi') L U layer by layer."""
    jacobian = torch.eye(flow.features, dtype=x.dtype)
    for layer in flow.layers:
        weight = (layer.lu.tril(-1) + torch.eye(flow.features, dtype=x.dtype)) @ layer.lu.triu()
        x, jacobian = weight @ x + layer.bias, weight @ jacobian
        if layer.activation is not None:
            assert isinstance(layer.activation, LeakySoftplus)
            slope = layer.activation.slope
            jacobian = (slope + (1 - slope) * torch.sigmoid(x))[:, None] * jacobian
            x = slope * x + (1 - slope) * torch.nn.functional.softplus(x)
    return jacobian


# The paper's network


def test_the_paper_counts_its_layers_and_parameters() -> None:
    flow = LUNet(*PAPER)
    assert flow.free_parameters() == 2_461_760
    assert [layer.activation is None for layer in flow.layers] == [False, False, False, True]


@torch.no_grad()
def test_round_trip_at_784_features_in_float64(wide: LUNet) -> None:
    x = 3 * torch.randn(8, 784, generator=seeded(), dtype=torch.float64)
    z, _ = wide(x)
    assert (z - x).abs().mean() > 1
    torch.testing.assert_close(wide.inverse(z), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(wide(wide.inverse(x)).z, x, rtol=0, atol=1e-10)


@torch.no_grad()
def test_round_trip_at_784_features_in_float32() -> None:
    flow = random_lu_net(*PAPER)
    x = 3 * torch.randn(8, 784, generator=seeded())
    torch.testing.assert_close(flow.inverse(flow(x).z), x, rtol=0, atol=2e-2)
    torch.testing.assert_close(flow(flow.inverse(x)).z, x, rtol=0, atol=1e-2)


@torch.no_grad()
def test_float32_agrees_with_float64_at_784_features(wide: LUNet) -> None:
    x = 3 * torch.randn(8, 784, generator=seeded())
    torch.testing.assert_close(random_lu_net(*PAPER).log_prob(x).double(), wide.log_prob(x.double()), rtol=1e-5, atol=0)


@torch.no_grad()
def test_log_det_at_784_features_is_that_of_the_dense_product(wide: LUNet) -> None:
    x = 3 * torch.randn(3, 784, generator=seeded(), dtype=torch.float64)
    for row, log_det in zip(x, wide(x).log_det, strict=True):
        expected = torch.linalg.slogdet(dense_jacobian(wide, row)).logabsdet
        torch.testing.assert_close(log_det, expected, rtol=1e-10, atol=0)


@torch.no_grad()
def test_a_round_trip_does_not_see_a_wrong_log_det() -> None:
    class Lossy(LULayer):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z, _ = super().forward(x)
            return z, x.new_zeros(len(x))

    flow = random_lu_net(6, layers=2).double()
    flow.layers[0].__class__ = Lossy
    x = torch.randn(1, 6, generator=seeded(), dtype=torch.float64)
    z, log_det = flow(x)
    torch.testing.assert_close(flow.inverse(z), x)
    assert abs(log_det[0] - torch.linalg.slogdet(dense_jacobian(flow, x[0])).logabsdet) > 0.1


def test_every_stored_parameter_is_free() -> None:
    flow = random_lu_net(12, layers=3)
    flow.log_prob(torch.randn(20, 12, generator=seeded())).sum().backward()
    for parameter in flow.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()


def test_gradients_reach_latents_and_parameters_through_the_inverse() -> None:
    flow = random_lu_net(3, layers=3).double()
    z = torch.randn(4, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    # gradcheck moves the parameters in place, so the flow sees them move.
    assert torch.autograd.gradcheck(lambda z, *_: flow.inverse(z), (z, *flow.parameters()))


# Start


def test_starts_at_the_identity() -> None:
    x = torch.randn(5, 7, generator=seeded())
    z, log_det = LUNet(7, layers=1)(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(5))


@torch.no_grad()
def test_one_whitened_layer_is_the_gaussian() -> None:
    x = correlated(4000, 30)
    flow, gaussian = LUNet(30, layers=1).double().whiten_(x), Gaussian(30).double().fit_(x)
    torch.testing.assert_close(flow.log_prob(x), gaussian.log_prob(x), rtol=1e-10, atol=1e-10)
    z, _ = flow(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(30).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(30).double(), rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_whitened_layer_keeps_features_in_place() -> None:
    x = correlated(4000, 30)
    z, _ = LUNet(30, layers=1).double().whiten_(x)(x)
    assert torch.equal(torch.cat([x, z], 1).T.corrcoef()[:30, 30:].argmax(1), torch.arange(30))


@pytest.mark.parametrize(("layers", "gap"), [(2, 0.1), (4, 0.4)])
@torch.no_grad()
def test_whiten_starts_near_the_gaussian(layers: int, gap: float) -> None:
    x = correlated(4000, 30)
    bar = Gaussian(30).double().fit_(x).log_prob(x).mean()
    flow = LUNet(30, layers).double()
    starts = [flow.whiten_(x, offset=offset).log_prob(x).mean() for offset in (0.0, 1.0, 3.0, 40.0)]
    gaps = [(bar - start).item() / 30 for start in starts]  # nats a feature
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[1] < gap
    assert gaps[2] < 0.05
    assert abs(gaps[3]) < 1e-7
    assert torch.equal(flow.whiten_(x).log_prob(x).mean(), starts[1])


def test_whitening_in_float32_is_close_to_float64() -> None:
    x = correlated(2000, 50)
    single, double = LUNet(50).whiten_(x.float()), LUNet(50).double().whiten_(x)
    torch.testing.assert_close(single.log_prob(x.float()).double(), double.log_prob(x), rtol=1e-4, atol=1e-3)


def test_training_beats_the_gaussian_and_stays_invertible() -> None:
    def draw(seed: int) -> Tensor:
        sources = torch.randn(1000, 4, generator=seeded(seed), dtype=torch.float64)
        sources[:, :2] = sources[:, :2].exp()
        return sources @ (random_lu(4) + torch.ones(4, 4))

    x, held_out = draw(0), draw(1)
    flow = LUNet(4, layers=3).double().whiten_(x)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    for _ in range(100):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
    flow.eval()
    bar = Gaussian(4).double().fit_(x)
    assert flow.log_prob(held_out).mean() > bar.log_prob(held_out).mean() + 0.5
    torch.testing.assert_close(flow.inverse(flow(x).z), x, rtol=0, atol=1e-10)
    jacobian = torch.linalg.slogdet(dense_jacobian(flow, x[0])).logabsdet
    torch.testing.assert_close(flow(x[:1]).log_det[0], jacobian, rtol=1e-10, atol=1e-10)


# Errors


def test_a_zero_on_the_diagonal_names_its_layer() -> None:
    flow = random_lu_net(4)
    with torch.no_grad():
        flow.layers[2].lu[1, 1] = 0
    message = r"layers\.2 is singular: entry 1 of U's diagonal is zero"
    with pytest.raises(ValueError, match=message):
        flow(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=message):
        flow.train().inverse(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=message):
        flow.sample(2)


def test_a_parameter_that_is_not_finite_is_named() -> None:
    flow = random_lu_net(4)
    with torch.no_grad():
        flow.layers[1].bias[3] = math.nan
    with pytest.raises(ValueError, match=r"layers\.1\.bias has values that are not finite"):
        flow.log_prob(torch.zeros(1, 4))


def test_a_singular_sample_is_refused() -> None:
    x = correlated(100, 4)
    x[:, 2] = 1.5
    with pytest.raises(ValueError, match="covariance of 100 rows is singular in feature 2"):
        LUNet(4).double().whiten_(x)


def test_a_sample_with_nan_is_refused() -> None:
    x = correlated(100, 4)
    x[3, 1] = math.nan
    with pytest.raises(ValueError, match="x has values that are not finite"):
        LUNet(4).double().whiten_(x)


@pytest.mark.parametrize(("start", "rows"), [("whiten_", 3), ("copula_", 3), ("standardise_", 100)])
def test_a_start_that_fails_leaves_the_flow_as_it_was(start: str, rows: int) -> None:
    flow, options = random_lu_net(4).double(), {"ridge": 0.0} if start == "copula_" else {}
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    x = correlated(rows, 4)
    if start == "standardise_":
        x[:, 2] = 1.5
    with pytest.raises(ValueError, match=r"singular|not finite"):
        getattr(flow, start)(x, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in flow.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"features": 0}, "features is 0"), ({"features": 3, "layers": 0}, "layers is 0"),
     ({"features": 3, "slope": 1.5}, "slope is 1.5")],
)  # fmt: skip
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LUNet(**arguments)


# The layer


def test_layer_is_phi_of_l_u_x_plus_b() -> None:
    layer = LULayer(3, LeakySoftplus(0.2)).double()
    lu = random_lu(3)
    with torch.no_grad():
        layer.lu.copy_(lu)
        layer.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    x = torch.tensor([[1.0, -0.5, 0.25]], dtype=torch.float64)
    h = (lu.tril(-1) + torch.eye(3)) @ (lu.triu() @ x[0]) + layer.bias
    z, log_det = layer(x)
    torch.testing.assert_close(z[0], 0.2 * h + 0.8 * h.exp().log1p())
    slopes = 0.2 + 0.8 / (1 + (-h).exp())
    torch.testing.assert_close(log_det[0], slopes.log().sum() + lu.diagonal().abs().log().sum())
    torch.testing.assert_close(layer.inverse(z), x)
