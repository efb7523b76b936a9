from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from random_flows import CPU_DTYPES, seeded
from torch import Tensor

from lunet import LeakySoftplus, activation_from

SLOPES = [0.001, 0.01, 0.1, 0.5, 0.9, 0.999]


def arguments(dtype: torch.dtype) -> Tensor:
    """Dense around the bend, and tails of both signs up to 1e4."""
    tail = torch.logspace(-8, 4, 2001, dtype=torch.float64)
    return torch.cat([torch.linspace(-60, 60, 20_001, dtype=torch.float64), tail, -tail, torch.zeros(1)]).to(dtype)


def residuals(activation: LeakySoftplus, y: Tensor) -> Tensor:
    """The residuals of phi(x) = y, in units of the rounding error that is inevitable for an x in this dtype."""
    x = activation.inverse(y)
    value, log_slope = activation(x.double())
    unit = torch.finfo(y.dtype).eps * (1 + y.abs() + x.abs() * log_slope.exp())
    return (value - y.double()).abs() / unit


# Value and slope


@pytest.mark.parametrize("slope", SLOPES)
def test_value_is_the_formula(slope: float) -> None:
    x = torch.tensor([-1e4, -30.0, -1.5, 0.0, 0.7, 30.0, 1e4], dtype=torch.float64)
    expected = [slope * v + (1 - slope) * (max(v, 0) + math.log1p(math.exp(-abs(v)))) for v in x.tolist()]
    torch.testing.assert_close(
        LeakySoftplus(slope)(x)[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0
    )


@pytest.mark.parametrize("slope", SLOPES)
def test_log_slope_is_the_derivative(slope: float) -> None:
    x = arguments(torch.float64).requires_grad_()
    value, log_slope = LeakySoftplus(slope)(x)
    (derivative,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(log_slope.exp(), derivative, rtol=1e-14, atol=0)
    assert log_slope.exp().min() >= slope * (1 - 1e-15)
    assert log_slope.max() <= 0


def test_value_is_increasing_between_its_asymptotes() -> None:
    x = torch.linspace(-60, 60, 10_001, dtype=torch.float64)
    value, _ = LeakySoftplus(0.1)(x)
    assert (value.diff() > 0).all()
    assert (value >= torch.maximum(0.1 * x, x)).all()
    assert (value <= torch.maximum(0.1 * x, x) + 0.9 * math.log(2) + 1e-15).all()


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("features", [1, 2, 7, 64, 784])
@pytest.mark.parametrize("slope", SLOPES)
def test_evaluate_agrees_with_forward(slope: float, features: int, dtype: torch.dtype) -> None:
    x = arguments(dtype)[::27, None] * torch.linspace(-1, 1, features, dtype=dtype)
    x = x.repeat(2**18 // x.numel() + 1, 1)  # more rows than one chunk has
    value, log_slope = LeakySoftplus(slope)(x)
    buffer = x.clone()
    evaluated, sums = LeakySoftplus(slope).evaluate_(buffer)
    assert evaluated.data_ptr() == buffer.data_ptr()
    eps = torch.finfo(dtype).eps
    assert torch.equal(evaluated, value)
    torch.testing.assert_close(sums, log_slope.sum(1), rtol=4 * eps, atol=eps * features)


# Invertibility


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("slope", SLOPES)
def test_inverse_is_exact_to_rounding(slope: float, dtype: torch.dtype) -> None:
    y = arguments(dtype)
    assert LeakySoftplus(slope).inverse(y).dtype == dtype
    assert residuals(LeakySoftplus(slope), y).max() <= 2


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("slope", SLOPES)
def test_inverse_is_exact_to_rounding_on_a_gpu(slope: float, dtype: torch.dtype) -> None:
    assert residuals(LeakySoftplus(slope), arguments(dtype).cuda()).max() <= 4


@pytest.mark.parametrize("slope", SLOPES)
def test_inverse_undoes_forward(slope: float) -> None:
    x = arguments(torch.float64)
    torch.testing.assert_close(LeakySoftplus(slope).inverse(LeakySoftplus(slope)(x)[0]), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("slope", SLOPES)
def test_one_step_fewer_is_not_enough(slope: float, dtype: torch.dtype) -> None:
    activation = LeakySoftplus(slope)
    activation.steps[dtype] -= 1
    assert residuals(activation, arguments(dtype)).max() > 2


# Gradients


@pytest.mark.parametrize("slope", SLOPES)
def test_gradient_of_the_inverse(slope: float) -> None:
    y = torch.randn(30, generator=seeded(), dtype=torch.float64) * 4
    y = torch.cat([y, torch.tensor([-300.0, 300.0], dtype=torch.float64)]).requires_grad_()
    assert torch.autograd.gradcheck(LeakySoftplus(slope).inverse, y)


def test_gradient_of_the_inverse_is_one_over_the_slope() -> None:
    activation = LeakySoftplus(0.1)
    y = arguments(torch.float64).requires_grad_()
    x = activation.inverse(y)
    (gradient,) = torch.autograd.grad(x.sum(), y)
    torch.testing.assert_close(gradient, (-activation(x.detach())[1]).exp(), rtol=1e-12, atol=0)


# Arguments


@pytest.mark.parametrize("slope", [0.0, 0.0009, 1.0, -0.1, 2.0, math.nan])
def test_slope_out_of_range_raises(slope: float) -> None:
    with pytest.raises(ValueError, match=f"slope is {slope}.*between 0.001 and 1"):
        LeakySoftplus(slope)


def test_config_round_trip() -> None:
    assert LeakySoftplus(**LeakySoftplus(0.3).config()).slope == 0.3
    assert "slope=0.3" in repr(LeakySoftplus(0.3))


def test_second_derivatives_of_value_slope_and_inverse() -> None:
    activation = LeakySoftplus(0.1)
    x = (4 * torch.randn(20, generator=seeded(), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradgradcheck(activation, x)
    assert torch.autograd.gradgradcheck(activation.inverse, x)


@pytest.mark.parametrize("description", [{"kind": "Tanh"}, {"slope": 0.1}])
def test_unknown_kind_raises_and_lists_the_kinds(description: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no class called .*LeakySoftplus, LearnedMonotone"):
        activation_from(description)
