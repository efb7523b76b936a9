r"""Both triangles of an LU factorisation in one square matrix.

The compact form is the one that LAPACK's ``getrf`` returns: the strictly lower part of the matrix is that of the unit
lower triangular :math:`L`, whose diagonal of ones is not stored; the diagonal and the part above it are :math:`U`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import solve_triangular


def multiply(lu: Tensor, x: Tensor) -> Tensor:
    r"""The product :math:`L U x` for each row of a batch.

    Cost: :math:`O(N D^2)`.

    Args:
        lu: Both triangles in compact form, with shape :math:`(D, D)`.
        x: The batch, with shape :math:`(N, D)`.

    Returns:
        The product, with shape :math:`(N, D)`.
    """
    h = x @ lu.triu().mT
    return h + h @ lu.tril(-1).mT


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


def log_abs_det(lu: Tensor) -> Tensor:
    r"""The logarithm :math:`\ln |\det L U| = \sum_d \ln |u_{dd}|`, a scalar.

    Cost: :math:`O(D)`, where a dense matrix costs :math:`O(D^3)`.

    Args:
        lu: Both triangles in compact form, with shape :math:`(D, D)`.
    """
    return lu.diagonal().abs().log().sum()


def pack(lower: Tensor, upper: Tensor) -> Tensor:
    r"""The compact form of a unit lower and an upper triangular matrix, each with shape :math:`(D, D)`."""
    return torch.tril(lower, -1) + torch.triu(upper)
