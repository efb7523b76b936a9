from __future__ import annotations

import math

import pytest
import torch
from random_flows import correlated

from lunet.whitening import CHUNK, whitening


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("n", [500, 2 * CHUNK + 100])
def test_factor_is_that_of_the_inverse_covariance(n: int, ridge: float, dtype: torch.dtype) -> None:
    x = correlated(n, 7, dtype=dtype)
    mean, factor = whitening(x, ridge)
    covariance = x.double().T.cov(correction=0) + ridge * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(mean, x.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(covariance), rtol=1e-9, atol=1e-9)
    assert torch.equal(factor, factor.tril())


def test_whitened_sample_has_mean_0_and_covariance_1() -> None:
    x = correlated(2000, 7)
    mean, factor = whitening(x)
    z = (x - mean) @ factor.T
    torch.testing.assert_close(z.mean(0), torch.zeros(7).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(7).double(), rtol=0, atol=1e-10)


def test_singular_covariance_raises_and_names_the_feature() -> None:
    x = correlated(100, 4)
    x[:, 2] = 1.5
    with pytest.raises(ValueError, match="covariance of 100 rows is singular in feature 2; add a ridge"):
        whitening(x)
    assert whitening(x, ridge=1e-3)[1].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_raise(value: float) -> None:
    x = correlated(100, 4)
    x[3, 1] = value
    with pytest.raises(ValueError, match="x has values that are not finite"):
        whitening(x)
