from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from random_flows import CPU_DTYPES, random_spline, seeded
from torch import Tensor

from lunet import LearnedMonotone, activation_from


def arguments(features: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """Dense between the knots, and tails of both signs up to 1e4."""
    tail = torch.logspace(-6, 4, 501, dtype=torch.float64)
    return (
        torch.cat([torch.linspace(-9, 9, 2001, dtype=torch.float64), tail, -tail])[:, None]
        .repeat(1, features)
        .to(dtype)
    )


# Value and slope


def test_is_initialised_to_the_identity() -> None:
    x = torch.randn(50, 5, generator=seeded()) * 4
    y, log_slope = LearnedMonotone(5)(x)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-6)
    assert torch.equal(log_slope, torch.zeros(50, 5))


def test_log_slope_is_the_derivative() -> None:
    x = arguments().requires_grad_()
    value, log_slope = random_spline(3).double()(x)
    (derivative,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(log_slope.exp(), derivative, rtol=1e-12, atol=0)


@torch.no_grad()
def test_value_is_the_integral_of_the_slope() -> None:
    spline = random_spline(3).double()
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
def test_slope_is_linear_between_knots_and_its_mean_outside() -> None:
    spline = random_spline(1, bins=4).double()
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
def test_values_beyond_a_sharp_edge_stay_close() -> None:
    spline = LearnedMonotone(1, bins=16).fit_(-torch.rand(10_000, 1, generator=seeded()).pow(20) * 8)
    edge, far = spline(torch.tensor([[0.0], [8.0]]))[0]
    assert spline.log_slopes[0, -1] > 2  # at this slope the distance would be 60
    assert far - edge < 10


@torch.no_grad()
def test_anchor_is_a_fixed_point() -> None:
    spline = random_spline(3).double()
    knots = spline.left + spline.width * spline.anchor
    torch.testing.assert_close(spline(knots.mT)[0], knots.mT, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_slopes_are_bounded_away_from_zero() -> None:
    spline = LearnedMonotone(2)
    spline.log_slopes.fill_(-1e4)
    assert spline(torch.randn(9, 2, generator=seeded()))[1].exp().min() >= 0.99 * LearnedMonotone.SLOPE_MIN


# Invertibility


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@torch.no_grad()
def test_inverse_is_exact_to_rounding(dtype: torch.dtype) -> None:
    spline, y = random_spline(3).double().to(dtype), arguments(dtype=dtype)
    x = spline.inverse(y)
    value, log_slope = spline.double()(x.double())
    knots = spline.left.abs().max() + spline.bins * spline.width.max()
    unit = torch.finfo(dtype).eps * (knots + y.abs() + (knots + x.abs()) * log_slope.exp())
    assert ((value - y.double()).abs() / unit).max() <= 8


# Gradients


def test_gradients_of_value_and_log_slope() -> None:
    spline = random_spline(2, bins=4).double()
    x = (4 * torch.randn(12, 2, generator=seeded(), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, _: spline(x), (x, spline.log_slopes))


def test_gradients_of_the_inverse() -> None:
    spline = random_spline(2, bins=4).double()
    y = (4 * torch.randn(12, 2, generator=seeded(), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y, _: spline.inverse(y), (y, spline.log_slopes))


def test_second_derivatives() -> None:
    spline = random_spline(2, bins=4).double()
    x = (4 * torch.randn(12, 2, generator=seeded(), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, _: spline(x), (x, spline.log_slopes))
    assert torch.autograd.gradgradcheck(lambda y, _: spline.inverse(y), (x, spline.log_slopes))


# Fit


@torch.no_grad()
def test_fit_makes_each_feature_approximately_standard_normal() -> None:
    x = 0.4 * torch.randn(20_000, 3, generator=seeded())
    x = (x + torch.where(torch.rand(x.shape, generator=seeded(1)) < 0.7, 1, -1)) * torch.tensor([1.0, 30.0, -0.1])
    y, _ = LearnedMonotone(3, bins=64).fit_(x)(x)
    for feature in (y - y.median(0).values).T:
        quantiles = feature.quantile(torch.tensor([0.1, 0.25, 0.75, 0.9]))
        torch.testing.assert_close(quantiles, torch.tensor([-1.28, -0.67, 0.67, 1.28]), rtol=0, atol=0.1)


@pytest.mark.parametrize("value", [2.0, math.nan, math.inf])
def test_fit_on_a_constant_feature_raises(value: float) -> None:
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
def test_bad_arguments_raise_and_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedMonotone(**{"features": 3, **change})


def test_describe_round_trip() -> None:
    copy = activation_from(LearnedMonotone(3, bins=5, bound=2.0).describe())
    assert isinstance(copy, LearnedMonotone)
    assert copy.config() == {"features": 3, "bins": 5, "bound": 2.0}
    assert "bins=5" in repr(copy)
