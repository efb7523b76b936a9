from __future__ import annotations

import math

import pytest
import torch
from random_flows import correlated, random_lu_net, seeded, two_modes

from lunet import Gaussian, LearnedMonotone, LUNet, triangular

# Nats per feature by which a chain of three activations may fall short of the true density of two modes; a normal
# distribution falls short by 0.9, the best chain by 0.17.
GAP = 0.3

# Uniform


@torch.no_grad()
def test_uniform_initialises_all_entries() -> None:
    flow, same = (LUNet(100, 2).uniform_(seeded()) for _ in range(2))
    for layer, other in zip(flow.layers, same.layers, strict=True):
        for values in (layer.lu, layer.bias):
            assert values.abs().max() <= 0.1
            assert values.max() > 0.08
            assert values.min() < -0.08
        assert torch.equal(layer.lu, other.lu)


# Standardisation


@torch.no_grad()
def test_standardise_gives_each_layer_variance_1_and_the_offset() -> None:
    h = correlated(2000, 6)
    flow = LUNet(6, layers=3).double().standardise_(h, offset=2.0)
    for layer, mean in zip(flow.layers, (2.0, 2.0, 0.0), strict=True):
        linear = triangular.multiply(layer.lu, h) + layer.bias
        torch.testing.assert_close(linear.mean(0), torch.full((6,), mean).double(), rtol=0, atol=1e-10)
        torch.testing.assert_close(linear.var(0), torch.ones(6).double(), rtol=1e-10, atol=0)
        h, _ = layer(h)


# Whitening


@torch.no_grad()
def test_one_whitened_layer_is_the_gaussian() -> None:
    x = correlated(4000, 30)
    flow, gaussian = LUNet(30, layers=1).double().whiten_(x), Gaussian(30).double().fit_(x)
    torch.testing.assert_close(flow.log_prob(x), gaussian.log_prob(x), rtol=1e-10, atol=1e-10)
    z, _ = flow(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(30).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(30).double(), rtol=0, atol=1e-10)


@torch.no_grad()
def test_whitened_layer_keeps_features_in_place() -> None:
    x = correlated(4000, 30)
    z, _ = LUNet(30, layers=1).double().whiten_(x)(x)
    assert torch.equal(torch.cat([x, z], 1).T.corrcoef()[:30, 30:].argmax(1), torch.arange(30))


@pytest.mark.parametrize(("layers", "gap"), [(2, 0.1), (4, 0.4)])
@torch.no_grad()
def test_whiten_is_close_to_the_gaussian(layers: int, gap: float) -> None:
    x = correlated(4000, 30)
    gaussian = Gaussian(30).double().fit_(x).log_prob(x).mean()
    flow = LUNet(30, layers).double()
    log_probs = [flow.whiten_(x, offset=offset).log_prob(x).mean() for offset in (0.0, 1.0, 3.0, 40.0)]
    gaps = [(gaussian - log_prob).item() / 30 for log_prob in log_probs]  # nats per feature
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[1] < gap
    assert gaps[2] < 0.05
    assert abs(gaps[3]) < 1e-7
    assert torch.equal(flow.whiten_(x).log_prob(x).mean(), log_probs[1])


def test_whiten_in_float32_is_close_to_float64() -> None:
    x = correlated(2000, 50)
    single, double = LUNet(50).whiten_(x.float()), LUNet(50).double().whiten_(x)
    torch.testing.assert_close(single.log_prob(x.float()).double(), double.log_prob(x), rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_whiten_after_a_fitted_spline_beats_the_gaussian() -> None:
    x = correlated(4000, 8).exp()
    flow = LUNet(8, 3, activation=LearnedMonotone(8), leading=LearnedMonotone(8, 32)).double().whiten_(x)
    gaussian = Gaussian(8).double().fit_(x)
    assert flow.log_prob(x).mean() > gaussian.log_prob(x).mean() + 8
    z, _ = flow(x)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(8).double(), rtol=0, atol=1e-3)


# Gaussian copula


@torch.no_grad()
def test_copula_is_far_above_the_gaussian_and_white() -> None:
    x, _ = two_modes(4000, 8)
    test, true_log_prob = two_modes(1000, 8, seed=5)
    flow = LUNet(8, layers=4).double().copula_(x, seeded(), ridge=0.0)
    gaussian = Gaussian(8).double().fit_(x)
    assert flow.log_prob(test).mean() > true_log_prob.mean() - 8 * GAP
    assert gaussian.log_prob(test).mean() < true_log_prob.mean() - 4
    z, _ = flow(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(8).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(8).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.inverse(z), x, rtol=0, atol=1e-8)


@torch.no_grad()
def test_copula_mixes_features_only_in_the_last_layer() -> None:
    flow = LUNet(8, layers=3).copula_(two_modes(1000, 8)[0].float(), seeded())
    for layer in flow.layers[:-1]:
        assert torch.equal(layer.lu, layer.lu.diagonal().diag())
    assert (flow.layers[-1].lu != 0).all()


def test_copula_ridge_shrinks_the_latents() -> None:
    x, _ = two_modes(1000, 8)
    variances = [LUNet(8).double().copula_(x, seeded(), ridge=ridge)(x).z.var(0).mean() for ridge in (0.0, 0.1, 1.0)]
    assert variances == sorted(variances, reverse=True)


def test_copula_has_density_at_values_that_a_feature_never_takes() -> None:
    x, _ = two_modes(4000, 3)
    x[:, 1] = torch.randn(4000, generator=seeded(7), dtype=torch.float64) - 8  # never close to 3, unlike the others
    row = torch.tensor([[-3.0, 3.0, -3.0]], dtype=torch.float64)
    assert LUNet(3, layers=4).double().copula_(x, seeded()).log_prob(row) > -30
    # It is eleven standard deviations from the mean of a normal distribution.
    assert Gaussian(3).double().fit_(x).log_prob(row) < -60


# Errors


def test_whiten_on_a_singular_sample_raises() -> None:
    x = correlated(100, 4)
    x[:, 2] = 1.5
    with pytest.raises(ValueError, match="covariance of 100 rows is singular in feature 2"):
        LUNet(4).double().whiten_(x)


def test_whiten_on_a_sample_with_nan_raises() -> None:
    x = correlated(100, 4)
    x[3, 1] = math.nan
    with pytest.raises(ValueError, match="x has values that are not finite"):
        LUNet(4).double().whiten_(x)


@pytest.mark.parametrize(("method", "rows"), [("whiten_", 3), ("copula_", 3), ("standardise_", 100)])
def test_initialisation_that_fails_leaves_the_flow_unchanged(method: str, rows: int) -> None:
    flow, options = random_lu_net(4).double(), {"ridge": 0.0} if method == "copula_" else {}
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    x = correlated(rows, 4)
    if method == "standardise_":
        x[:, 2] = 1.5
    with pytest.raises(ValueError, match=r"singular|not finite"):
        getattr(flow, method)(x, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in flow.state_dict().items())


@pytest.mark.parametrize(
    "flow",
    [LUNet(4, layers=1), LUNet(4, activation=LearnedMonotone(4)), LUNet(4, leading=LearnedMonotone(4))],
    ids=["one layer", "learned", "leading"],
)
def test_copula_without_leaky_softpluses_raises(flow: LUNet) -> None:
    with pytest.raises(ValueError, match="leaky softpluses between two layers or more; use whiten_"):
        flow.copula_(correlated(100, 4).float())


@pytest.mark.parametrize("value", [2.0, math.nan, math.inf])
def test_copula_on_a_constant_feature_raises(value: float) -> None:
    x = torch.randn(20, 4)
    x[:, 1] = value
    with pytest.raises(ValueError, match="two different values or more, all of them finite"):
        LUNet(4).copula_(x)
