from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from random_flows import CPU_DTYPES, correlated, random_learned, seeded
from torch import Tensor

from lunet import Gaussian, LearnedMonotone, LUNet, activation_from


def bent(features: int = 3, bins: int = 12) -> LearnedMonotone:
    """A spline far from the identity, its knots and its anchor at other places for each feature, in float64."""
    leading = random_learned(features, layers=1, bins=bins // 2).leading
    assert isinstance(leading, LearnedMonotone)
    return leading.double()


def arguments(features: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """Dense over the knots, and tails of both signs up to 1e4."""
    tail = torch.logspace(-6, 4, 501, dtype=torch.float64)
    return (
        torch.cat([torch.linspace(-9, 9, 2001, dtype=torch.float64), tail, -tail])[:, None]
        .repeat(1, features)
        .to(dtype)
    )


# Value and slope


def test_starts_at_the_identity_exactly() -> None:
    x = torch.randn(50, 5, generator=seeded()) * 4
    y, log_slope = LearnedMonotone(5)(x)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-6)
    assert torch.equal(log_slope, torch.zeros(50, 5))


def test_log_slope_is_the_derivative() -> None:
    x = arguments().requires_grad_()
    value, log_slope = bent()(x)
    (derivative,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(log_slope.exp(), derivative, rtol=1e-12, atol=0)


@torch.no_grad()
def test_value_is_the_integral_of_the_slope() -> None:
    spline = bent()
    left, right = spline.left.mT, (spline.left + spline.width * spline.bins).mT
    share = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    value, log_slope = spline(left + (right - left) * share)
    integral = torch.cumulative_trapezoid(log_slope.exp(), dx=1 / 20_000, dim=0) * (right - left)
    torch.testing.assert_close(value[1:] - value[:1], integral, rtol=1e-6, atol=1e-6)
    ends = spline(left)[0], spline(right)[0]
    for end, beyond, distance in ((ends[0], left - 50, -50), (ends[1], right + 50, 50)):
        value, log_slope = spline(beyond)
        torch.testing.assert_close(value, end + distance * log_slope.exp(), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_slope_is_linear_between_knots_and_their_mean_outside() -> None:
    spline = bent(1, bins=4)
    left, width = spline.left.item(), spline.width.item()
    knots = [left + width * k for k in range(5)]
    slopes = spline.SLOPE_MIN + (1 - spline.SLOPE_MIN) * spline.log_slopes[0].exp()

    def slope(x: float) -> Tensor:
        return spline(torch.tensor([[x]], dtype=torch.float64))[1].exp()[0, 0]

    for k, knot in enumerate(knots):
        torch.testing.assert_close(slope(knot), slopes[k], rtol=1e-12, atol=0)
    torch.testing.assert_close(slope(knots[1] + 0.3 * width), 0.7 * slopes[1] + 0.3 * slopes[2], rtol=1e-12, atol=0)
    mean = ((slopes[1:] + slopes[:-1]) / 2).mean()
    torch.testing.assert_close(slope(knots[0] - 100), mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(slope(knots[4] + 100), mean, rtol=1e-12, atol=0)


@torch.no_grad()
def test_a_sharp_edge_does_not_throw_far_what_lies_beyond_it() -> None:
    spline = LearnedMonotone(1, bins=16).fit_(-torch.rand(10_000, 1, generator=seeded()).pow(20) * 8)
    edge, far = spline(torch.tensor([[0.0], [8.0]]))[0]
    assert spline.log_slopes[0, -1] > 2  # 60 beyond the edge, at this slope
    assert far - edge < 10


@torch.no_grad()
def test_the_anchor_stays_where_it_is() -> None:
    spline = bent()
    knots = spline.left + spline.width * spline.anchor
    torch.testing.assert_close(spline(knots.mT)[0], knots.mT, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_slopes_keep_clear_of_zero() -> None:
    spline = LearnedMonotone(2)
    spline.log_slopes.fill_(-1e4)
    assert spline(torch.randn(9, 2, generator=seeded()))[1].exp().min() >= 0.99 * LearnedMonotone.SLOPE_MIN


# Invertibility


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@torch.no_grad()
def test_inverse_leaves_a_rounding_error(dtype: torch.dtype) -> None:
    spline, y = bent().to(dtype), arguments(dtype=dtype)
    x = spline.inverse(y)
    value, log_slope = spline.double()(x.double())
    knots = spline.left.abs().max() + spline.bins * spline.width.max()
    unit = torch.finfo(dtype).eps * (knots + y.abs() + (knots + x.abs()) * log_slope.exp())
    assert ((value - y.double()).abs() / unit).max() <= 8


# Gradients


def test_gradients_of_value_and_log_slope() -> None:
    spline = bent(2, bins=4)
    x = (4 * torch.randn(12, 2, generator=seeded(), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, _: spline(x), (x, spline.log_slopes))


def test_gradients_of_the_inverse() -> None:
    spline = bent(2, bins=4)
    y = (4 * torch.randn(12, 2, generator=seeded(), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y, _: spline.inverse(y), (y, spline.log_slopes))


def test_second_derivatives() -> None:
    spline = bent(2, bins=4)
    x = (4 * torch.randn(12, 2, generator=seeded(), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, _: spline(x), (x, spline.log_slopes))
    assert torch.autograd.gradgradcheck(lambda y, _: spline.inverse(y), (x, spline.log_slopes))


# Start


@torch.no_grad()
def test_fit_makes_each_feature_nearly_standard_normal() -> None:
    x = 0.4 * torch.randn(20_000, 3, generator=seeded())
    x = (x + torch.where(torch.rand(x.shape, generator=seeded(1)) < 0.7, 1, -1)) * torch.tensor([1.0, 30.0, -0.1])
    y, _ = LearnedMonotone(3, bins=64).fit_(x)(x)
    for feature in (y - y.median(0).values).T:
        quantiles = feature.quantile(torch.tensor([0.1, 0.25, 0.75, 0.9]))
        torch.testing.assert_close(quantiles, torch.tensor([-1.28, -0.67, 0.67, 1.28]), rtol=0, atol=0.1)


@torch.no_grad()
def test_whitening_behind_a_fitted_spline_beats_the_gaussian_before_any_step() -> None:
    x = correlated(4000, 8).exp()
    flow = LUNet(8, 3, activation=LearnedMonotone(8), leading=LearnedMonotone(8, 32)).double().whiten_(x)
    gaussian = Gaussian(8).double().fit_(x)
    assert flow.log_prob(x).mean() > gaussian.log_prob(x).mean() + 8
    z, _ = flow(x)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(8).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("value", [2.0, math.nan, math.inf])
def test_a_sample_without_spread_is_refused(value: float) -> None:
    x = torch.randn(20, 3)
    x[:, 1] = value
    with pytest.raises(ValueError, match="two different values or more, all of them finite"):
        LearnedMonotone(3).fit_(x)


# Arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [({"features": 0}, "features is 0"), ({"bins": 1}, "bins is 1"), ({"bound": 0.0}, "bound is 0"),
     ({"bound": math.inf}, "bound is inf")],
)  # fmt: skip
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedMonotone(**{"features": 3, **change})


def test_description_makes_it_again() -> None:
    again = activation_from(LearnedMonotone(3, bins=5, bound=2.0).describe())
    assert isinstance(again, LearnedMonotone)
    assert again.config() == {"features": 3, "bins": 5, "bound": 2.0}
    assert "bins=5" in repr(again)


@pytest.mark.parametrize("description", [{"kind": "Tanh"}, {"slope": 0.1}])
def test_an_unknown_kind_is_answered_with_those_there_are(description: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"activation kind is .*LeakySoftplus, LearnedMonotone"):
        activation_from(description)


def test_each_layer_has_an_activation_of_its_own() -> None:
    template = LearnedMonotone(4)
    flow = LUNet(4, 3, activation=template, leading=template)
    parts = [flow.leading, *(layer.activation for layer in flow.layers[:-1]), template]
    assert len({id(part) for part in parts}) == len(parts)
    assert flow.layers[-1].activation is None
    assert flow.free_parameters() == 3 * (16 + 4) + 3 * 4 * 17
