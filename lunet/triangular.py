r"""Both triangles of an LU factorisation in one square matrix.

The compact form is the one that LAPACK's ``getrf`` returns: the strictly lower part of the matrix is that of the unit
lower triangular :math:`L`, whose diagonal of ones is not stored; the diagonal and the part above it are :math:`U`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.linalg import solve_triangular


def transform(lu: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The product :math:`L U x` for each row of a batch, and :math:`\ln |\det L U| = \sum_d \ln |u_{dd}|`.

    On a CPU the product and its gradient skip most of what the triangles leave zero. The product has its batch in
    contiguous columns (strides 1 and N), which suits the next product, the triangular solves and elementwise maps. It
    is computed in the dtype of ``lu`` under autocast too.

    Cost: :math:`O(N D^2)` for the product, :math:`O(D)` for the determinant, where a dense matrix costs :math:`O(D^3)`.

    Args:
        lu: Both triangles in compact form, with shape :math:`(D, D)`.
        x: The batch, with shape :math:`(N, D)`.

    Returns:
        The product, with shape :math:`(N, D)`, and the log-determinant, a scalar.
    """
    with full_precision(x):
        y, _, diagonal = _Product.apply(lu, x.mT)
        return y.mT, diagonal.abs().log().sum()


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Where products keep their dtype under autocast, on the device of a tensor."""
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if autocast else nullcontext()


def multiply(lu: Tensor, x: Tensor) -> Tensor:
    r"""The product :math:`L U x` alone; see `transform`."""
    return transform(lu, x)[0]


def log_abs_det(lu: Tensor) -> Tensor:
    r"""The log-determinant :math:`\ln |\det L U|` alone, a scalar. Cost: :math:`O(D)`."""
    return lu.diagonal().abs().log().sum()


class _Product(torch.autograd.Function):
    """The product of both triangles with a batch in columns, (D, N), the product with U alone, and U's diagonal."""

    generate_vmap_rule = True

    @staticmethod
    def forward(lu: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        blocks = _blocks(lu)
        h = torch.cat([lu[a:b, a:].triu() @ x[a:] for a, b in blocks])
        return h + torch.cat([lu[a:b, :b].tril(a - 1) @ h[:b] for a, b in blocks]), h, lu.diagonal().clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_h: Tensor, grad_diagonal: Tensor) -> tuple[Tensor, Tensor]:
        lu, x, h = ctx.saved_tensors
        blocks = _blocks(lu)
        grad_h = grad_h + grad_y + torch.cat([lu[a:, a:b].tril(-1).mT @ grad_y[a:] for a, b in blocks])
        grad_x = torch.cat([lu[:b, a:b].triu(-a).mT @ grad_h[:b] for a, b in blocks])
        # Made from a value that depends on all others, so that under vmap it has the batches of all of them.
        grad_lu = (grad_h[0, 0] + x[0, 0] + grad_diagonal[0]).new_empty(lu.shape)
        for a, b in blocks:
            lower, upper = grad_y[a:b] @ h[:b].mT, grad_h[a:b] @ x[a:].mT
            both = lower[:, a:].tril(-1) + upper[:, : b - a].triu() + grad_diagonal[a:b].diag()
            grad_lu[a:b, :a], grad_lu[a:b, a:b], grad_lu[a:b, b:] = lower[:, :a], both, upper[:, b - a :]
        return grad_lu, grad_x


def _blocks(lu: Tensor) -> list[tuple[int, int]]:
    """The block rows in which a triangle is multiplied: four of a wide one, which spares 3/8 of the arithmetic.

    On a GPU one product is faster than four.
    """
    features = lu.shape[-1]
    step = -(-features // 4) if features >= 256 and lu.device.type == "cpu" else features
    return [(start, min(start + step, features)) for start in range(0, features, step)]


def solve(lu: Tensor, y: Tensor) -> Tensor:
    r"""The solution of :math:`L U x = y` for each row of a batch, by two triangular solves.

    Cost: :math:`O(N D^2)`. Each solve reads only its own triangle of ``lu``.

    Args:
        lu: Both triangles in compact form, with shape :math:`(D, D)`, the diagonal free of zeros.
        y: The batch, with shape :math:`(N, D)`.

    Returns:
        The solution, with shape :math:`(N, D)`.
    """
    h = solve_triangular(lu, y.mT, upper=False, unitriangular=True)
    return solve_triangular(lu, h, upper=True).mT


def unpack(lu: Tensor) -> tuple[Tensor, Tensor]:
    r"""The unit lower triangular :math:`L` and the upper triangular :math:`U`, each with shape :math:`(D, D)`."""
    return lu.tril(-1) + torch.eye(len(lu), dtype=lu.dtype, device=lu.device), lu.triu()


@torch.no_grad()
def condition(lu: Tensor, iterations: int = 20) -> float:
    r"""An estimate of the condition number :math:`\sigma_{\max} / \sigma_{\min}` of :math:`L U`, never above it.

    Power iterations with the product and with its inverse, from a fixed random start, find both singular values.

    Cost: :math:`O(D^2)` an iteration, where the singular values of a dense matrix cost :math:`O(D^3)`.

    Args:
        lu: Both triangles in compact form, with shape :math:`(D, D)`, the diagonal free of zeros.
        iterations: Steps of each iteration.
    """
    lower, upper = unpack(lu)
    start = torch.randn(len(lu), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(lu)
    stretched = shrunk = start / start.norm()
    largest = smallest = start.new_tensor(1.0)
    for _ in range(iterations):
        y = lower @ (upper @ stretched)
        largest = y.norm()
        stretched = upper.mT @ (lower.mT @ y)
        stretched = stretched / stretched.norm()
        y = solve_triangular(upper, solve_triangular(lower, shrunk, upper=False, unitriangular=True), upper=True)
        smallest = 1 / y.norm()
        shrunk = solve_triangular(lower.mT, solve_triangular(upper.mT, y, upper=False), upper=True, unitriangular=True)
        shrunk = shrunk / shrunk.norm()
    return float(largest / smallest)


def pack(lower: Tensor, upper: Tensor) -> Tensor:
    r"""The compact form of a unit lower and an upper triangular matrix, each with shape :math:`(D, D)`."""
    return torch.tril(lower, -1) + torch.triu(upper)
