"""Agreement with other libraries; a test is skipped if its library is not installed."""

from __future__ import annotations

import pytest
import torch
from random_flows import random_lu, seeded
from torch.distributions import transforms

from lunet import LearnedMonotone, LULayer, pixels, triangular


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("features", [1, 7, 784])
def test_lu_layer_agrees_with_nflows(features: int) -> None:
    linear = pytest.importorskip("nflows.transforms", reason="needs nflows").LULinear(features).double()
    layer = LULayer(features).double()
    lu = random_lu(features)
    lu.diagonal().abs_()  # nflows requires it to be positive
    with torch.no_grad():
        layer.lu.copy_(lu)
        layer.bias.normal_(generator=seeded(1))
        rows, columns = linear.lower_indices
        linear.lower_entries.copy_(lu[rows, columns])
        rows, columns = linear.upper_indices
        linear.upper_entries.copy_(lu[rows, columns])
        linear.unconstrained_upper_diag.copy_(torch.expm1(lu.diagonal() - linear.eps).log())
        linear.bias.copy_(layer.bias)
    x = torch.randn(9, features, generator=seeded(2), dtype=torch.float64)
    (y, log_det), (expected, expected_log_det) = layer(x), linear(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.inverse(y), linear.inverse(y)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", [1, 7, 64])
def test_lu_layer_agrees_with_zuko(features: int) -> None:
    zuko = pytest.importorskip("zuko.transforms", reason="needs zuko")
    layer = LULayer(features).double()
    lu = random_lu(features)
    with torch.no_grad():
        layer.lu.copy_(lu)
    L, U = triangular.unpack(lu)
    d = lu.diagonal()
    linear = zuko.LULinearTransform((L * d).tril() + (U / d[:, None]).triu(1))  # in zuko the diagonal is part of L
    x = torch.randn(9, features, generator=seeded(2), dtype=torch.float64)
    y, log_det = layer(x)
    torch.testing.assert_close(y, linear(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det, linear.log_abs_det_jacobian(x, y), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.inverse(y), linear.inv(y), rtol=1e-10, atol=1e-10)


def test_logit_agrees_with_torch() -> None:
    values = torch.rand(50, generator=seeded(), dtype=torch.float64)
    logit = transforms.SigmoidTransform().inv
    y, log_slope = pixels.logit(values, 0.0, 0.0)
    torch.testing.assert_close(y, logit(values))
    torch.testing.assert_close(log_slope, logit.log_abs_det_jacobian(values, y))


def test_unit_lower_triangle_agrees_with_torch() -> None:
    layer = LULayer(6).double()
    lower = torch.randn(6, 6, generator=seeded(), dtype=torch.float64).tril(-1)
    with torch.no_grad():
        layer.lu.add_(lower)
    x = torch.randn(4, 6, generator=seeded(1), dtype=torch.float64)
    affine = x @ (torch.eye(6) + lower).mT
    torch.testing.assert_close(layer(x)[0], affine)


def test_spline_of_one_slope_agrees_with_the_affine_transform() -> None:
    spline = LearnedMonotone(3).double()
    with torch.no_grad():
        spline.log_slopes.fill_(0.7)
    slope = spline.SLOPE_MIN + (1 - spline.SLOPE_MIN) * torch.tensor(0.7, dtype=torch.float64).exp()
    affine = transforms.AffineTransform(0.0, slope)
    x = 9 * torch.randn(20, 3, generator=seeded(), dtype=torch.float64)
    y, log_slope = spline(x)
    torch.testing.assert_close(y, affine(x))
    torch.testing.assert_close(log_slope, affine.log_abs_det_jacobian(x, y))
