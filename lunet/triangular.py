r"""Products and solutions with both triangles of an LU factorisation, stored in one square matrix.

The compact form is the one that LAPACK's ``getrf`` returns. The strictly lower part of the matrix is that of the unit
lower triangular :math:`L`, whose diagonal of ones is not stored. The diagonal and the part above it are :math:`U`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.linalg import solve_triangular


def unpack(lu: Tensor) -> tuple[Tensor, Tensor]:
    r"""The unit lower triangular :math:`L` and the upper triangular :math:`U`, each with shape :math:`(D, D)`."""
    return lu.tril(-1) + torch.eye(len(lu), dtype=lu.dtype, device=lu.device), lu.triu()


def pack(lower: Tensor, upper: Tensor) -> Tensor:
    r"""The compact form of a unit lower and an upper triangular matrix, each with shape :math:`(D, D)`."""
    return torch.tril(lower, -1) + torch.triu(upper)


def log_abs_det(lu: Tensor) -> Tensor:
    r"""The log-determinant :math:`\ln |\det L U| = \sum_d \ln |u_{dd}|`, a scalar. Cost: :math:`O(D)`."""
    return lu.diagonal().abs().log().sum()


def multiply(lu: Tensor, x: Tensor) -> Tensor:
    r"""The product :math:`L U x` for each row of a batch; see `transform`."""
    return transform(lu, x)[0]


def solve(lu: Tensor, y: Tensor) -> Tensor:
    r"""The solution of :math:`L U x = y` for each row of a batch, by two triangular solves.

    Cost: :math:`O(N D^2)`. Each solve reads only its own triangle of ``lu``.

    Args:
        lu: Both triangles in compact form, with shape :math:`(D, D)`; no diagonal entry is zero.
        y: The batch, with shape :math:`(N, D)`.

    Returns:
        The solution, with shape :math:`(N, D)`.
    """
    h = solve_triangular(lu, y.mT, upper=False, unitriangular=True)
    return solve_triangular(lu, h, upper=True).mT


@torch.no_grad()
def condition(lu: Tensor, iterations: int = 20) -> Tensor:
    r"""An estimate of the condition number :math:`\sigma_{\max} / \sigma_{\min}` of :math:`L U`, not above it.

    Power iterations with the matrix and with its inverse, in float64 and from a fixed random vector, estimate both
    singular values.

    Cost: :math:`O(D^3)` for the product and the inverse, :math:`O(D^2)` per iteration; no value is read from a GPU.

    Args:
        lu: Both triangles in compact form, with shape :math:`(D, D)`; no diagonal entry is zero.
        iterations: The number of steps of each power iteration.

    Returns:
        The estimate, a scalar in float64.
    """
    lower, upper = unpack(lu.double())
    identity = torch.eye(len(lu), dtype=torch.float64, device=lu.device)
    generator = torch.Generator(lu.device).manual_seed(0)
    start = torch.randn(len(lu), generator=generator, dtype=torch.float64, device=lu.device)

    def largest_singular_value(matrix: Tensor) -> Tensor:
        vector = start / start.norm()
        for _ in range(iterations):
            stretched = matrix @ vector
            vector = matrix.mT @ stretched
            vector = vector / vector.norm()
        return (matrix @ vector).norm()

    return largest_singular_value(lower @ upper) * largest_singular_value(solve(lu.double(), identity))


def transform(lu: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The product :math:`L U x` for each row of a batch, and :math:`\ln |\det L U| = \sum_d \ln |u_{dd}|`.

    On a CPU the product and its gradient skip most of the zeros of the triangles. The columns of the product are
    contiguous (strides 1 and N), which suits the next product, the triangular solves and elementwise maps. The dtype is
    that of ``lu``, under autocast too.

    Cost: :math:`O(N D^2)` for the product and :math:`O(D)` for the determinant, which costs :math:`O(D^3)` for a dense
    matrix.

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
    """A context in which products keep their dtype even under autocast, on the device of a tensor."""
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if autocast else nullcontext()


class _Product(torch.autograd.Function):
    """For a batch x in columns (D, N): the product y = L h, the product h = U x, and the diagonal of U.

    The blocks on the diagonal are multiplied as one batch of matrices, the rest by one product for each block row.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(lu: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        blocks, width = _diagonal_blocks(lu)
        cuts = range(width, len(lu), width)
        h = (blocks.triu() @ x.unflatten(0, (-1, width))).flatten(0, 1)
        for cut in cuts:
            h[cut - width : cut].addmm_(lu[cut - width : cut, cut:], x[cut:])
        rows = h.unflatten(0, (-1, width))
        y = torch.baddbmm(rows, blocks.tril(-1), rows).flatten(0, 1)
        for cut in cuts:
            y[cut : cut + width].addmm_(lu[cut : cut + width, :cut], h[:cut])
        return y, h, lu.diagonal().clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gradients dh = L^T dy, dx = U^T dh, dL = dy h^T and dU = dh x^T, the last two in their triangles."""
        lu, x, h = ctx.saved_tensors
        grad_y, grad_product, grad_diagonal = grads
        if grad_y is None:
            grad_y = torch.zeros_like(h)
        blocks, width = _diagonal_blocks(lu)
        cuts = range(width, len(lu), width)
        x_rows, h_rows, grad_y_rows = (rows.unflatten(0, (-1, width)) for rows in (x, h, grad_y))
        grad_h = torch.baddbmm(grad_y_rows, blocks.tril(-1).mT, grad_y_rows).flatten(0, 1)
        for cut in cuts:
            grad_h[cut - width : cut].addmm_(lu[cut:, cut - width : cut].mT, grad_y[cut:])
        if grad_product is not None:
            grad_h = grad_h + grad_product
        grad_h_rows = grad_h.unflatten(0, (-1, width))
        grad_x = (blocks.triu().mT @ grad_h_rows).flatten(0, 1)
        for cut in cuts:
            grad_x[cut : cut + width].addmm_(lu[:cut, cut : cut + width].mT, grad_h[:cut])
        lower, upper = grad_y_rows @ h_rows.mT, grad_h_rows @ x_rows.mT
        grad_blocks = lower.tril(-1) + upper.triu()
        if grad_diagonal is not None:
            grad_blocks = grad_blocks + grad_diagonal.unflatten(0, (-1, width)).diag_embed()
        # new_empty of a value that depends on all others, so that under vmap it has the batch dimensions of all.
        grad_lu = (grad_x[0, 0] + grad_blocks[0, 0, 0]).new_empty(lu.shape)
        _diagonal_blocks(grad_lu)[0].copy_(grad_blocks)
        for cut in cuts:
            grad_lu[cut:, cut - width : cut].addmm_(grad_y[cut:], h[cut - width : cut].mT, beta=0)
            grad_lu[cut - width : cut, cut:].addmm_(grad_h[cut - width : cut], x[cut:].mT, beta=0)
        return grad_lu, grad_x


def _diagonal_blocks(lu: Tensor) -> tuple[Tensor, int]:
    """The blocks on the diagonal, a view with shape (D / B, B, B), and their width B.

    On a CPU a wide matrix has up to eight blocks, which saves up to 7/16 of the arithmetic. On a GPU a single product
    is faster.
    """
    features = lu.shape[-1]
    counts = range(2, 9) if lu.device.type == "cpu" else ()
    count = max([1, *(count for count in counts if features % count == 0 and features // count >= 100)])
    width = features // count
    grid = lu.unflatten(0, (count, width)).unflatten(2, (count, width))
    return grid.diagonal(dim1=0, dim2=2).movedim(-1, 0), width
