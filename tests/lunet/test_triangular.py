from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from random_flows import CPU_DTYPES, random_lu, seeded
from torch import Tensor

from lunet import triangular

SIZES = [1, 2, 7, 784]


def triangles(lu: Tensor) -> tuple[Tensor, Tensor]:
    return lu.tril(-1) + torch.eye(len(lu), dtype=lu.dtype), lu.triu()


# Product


@pytest.mark.parametrize("features", SIZES)
def test_multiply_is_the_dense_product(features: int) -> None:
    lu = random_lu(features)
    L, U = triangles(lu)
    x = torch.randn(9, features, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(triangular.multiply(lu, x), x @ (L @ U).T, rtol=1e-12, atol=1e-12)


def test_compact_form_is_that_of_lapack() -> None:
    matrix = torch.randn(6, 6, generator=seeded(), dtype=torch.float64) + 8 * torch.eye(6)
    lu, pivots = torch.linalg.lu_factor(matrix)
    assert pivots.tolist() == [1, 2, 3, 4, 5, 6]
    x = torch.randn(3, 6, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(triangular.multiply(lu, x), x @ matrix.T, rtol=1e-12, atol=1e-12)
    _, L, U = torch.linalg.lu(matrix)
    torch.testing.assert_close(triangular.pack(L, U), lu)


def test_pack_reads_only_the_triangle_of_each_matrix() -> None:
    lu = random_lu(5)
    noise = torch.full((5, 5), 9.0, dtype=torch.float64)
    L, U = triangles(lu)
    assert torch.equal(triangular.pack(L + noise.triu(), U + noise.tril(-1)), lu)


# Invertibility


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("features", SIZES)
def test_solve_undoes_multiply(features: int, dtype: torch.dtype) -> None:
    lu = random_lu(features).to(dtype)
    x = torch.randn(9, features, generator=seeded(), dtype=dtype)
    tolerance = 1000 * torch.finfo(dtype).eps
    torch.testing.assert_close(triangular.solve(lu, triangular.multiply(lu, x)), x, rtol=0, atol=tolerance)
    torch.testing.assert_close(triangular.multiply(lu, triangular.solve(lu, x)), x, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [1e-6, 1e-30, 1e-200, 1e200])
def test_solve_is_accurate_for_tiny_and_huge_diagonals(size: float) -> None:
    lu = torch.tensor([[-size, 0.0, 0.0], [0.5, 2.0, 0.3], [-0.2, 0.7, size]], dtype=torch.float64)
    x = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    L, U = triangles(lu)
    y = torch.linalg.solve_triangular(U, torch.linalg.solve_triangular(L, x.T, upper=False), upper=True).T
    torch.testing.assert_close(triangular.solve(lu, x), y, rtol=1e-14, atol=0)
    assert triangular.log_abs_det(lu).item() == pytest.approx(math.log(2) + 2 * math.log(size), rel=1e-14)


@pytest.mark.parametrize("call", [triangular.multiply, triangular.solve])
def test_empty_batch(call: Callable[..., Tensor]) -> None:
    assert call(random_lu(4), torch.empty(0, 4, dtype=torch.float64)).shape == (0, 4)


# Determinant


@pytest.mark.parametrize("features", SIZES)
def test_log_abs_det_is_that_of_the_product(features: int) -> None:
    lu = random_lu(features)
    L, U = triangles(lu)
    expected = torch.linalg.slogdet(L @ U).logabsdet
    torch.testing.assert_close(triangular.log_abs_det(lu), expected, rtol=1e-11, atol=1e-11)


# Gradients


@pytest.mark.parametrize("call", [triangular.multiply, triangular.solve])
def test_gradients(call: Callable[..., Tensor]) -> None:
    lu = random_lu(4).requires_grad_()
    x = torch.randn(3, 4, generator=seeded(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (lu, x))


def test_gradient_of_the_log_det_is_one_over_the_diagonal() -> None:
    lu = random_lu(5).requires_grad_()
    (gradient,) = torch.autograd.grad(triangular.log_abs_det(lu), lu)
    torch.testing.assert_close(gradient, (1 / lu.detach().diagonal()).diag())


@pytest.mark.parametrize("features", [1, 2, 7, 300])
def test_gradient_of_the_transform_is_that_of_the_dense_product(features: int) -> None:
    lu, x = random_lu(features).requires_grad_(), torch.randn(5, features, generator=seeded(), dtype=torch.float64)
    x.requires_grad_()
    L, U = triangles(lu)
    weights = torch.randn(5, features, generator=seeded(1), dtype=torch.float64)

    def loss(y: Tensor, log_det: Tensor) -> Tensor:
        return (y.sin() * weights).sum() + 3 * log_det

    expected = torch.autograd.grad(loss(x @ (L @ U).T, lu.diagonal().abs().log().sum()), (lu, x))
    gradients = torch.autograd.grad(loss(*triangular.transform(lu, x)), (lu, x))
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-10)


def test_second_derivatives_of_the_transform() -> None:
    lu = random_lu(4).requires_grad_()
    x = torch.randn(3, 4, generator=seeded(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(triangular.transform, (lu, x))


# Condition number


@pytest.mark.parametrize("features", SIZES)
def test_condition_is_close_to_the_exact_one_and_not_above(features: int) -> None:
    lu = random_lu(features)
    L, U = triangles(lu)
    exact = torch.linalg.cond(L @ U).item()
    assert 0.9 * exact <= triangular.condition(lu).item() <= exact * (1 + 1e-9)
    assert triangular.condition(lu.float()).item() == pytest.approx(triangular.condition(lu).item(), rel=1e-3)


def test_condition_detects_a_nearly_singular_diagonal() -> None:
    lu = random_lu(50)
    lu[20, 20] = 1e-9
    L, U = triangles(lu)
    assert triangular.condition(lu).item() == pytest.approx(torch.linalg.cond(L @ U).item(), rel=0.05)
