"""The LU layer phi(L U x + b)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from lunet import folding, triangular
from lunet.activation import Activation, split_for_cache
from lunet.folding import MatrixCache


class LULayer(nn.Module):
    r"""The layer :math:`\phi(L U x + b)`; without an activation, :math:`L U x + b`.

    The linear part is initialised to the identity. The layer is invertible as long as no diagonal entry of :math:`U` is
    zero. Training avoids zeros by itself, as the likelihood falls to :math:`-\infty` there; `LUNet.check_invertible`
    detects them.

    Cost: :math:`O(N D^2)` in both directions, :math:`O(D)` for the log-determinant of the linear part. In eval mode,
    without gradients, and for batches of 64 rows or more on a CPU, :math:`L U` and its inverse are folded into one
    matrix each (the inverse only if that loses no digits). This happens once enough rows have passed to make it pay,
    and again after a weight has changed.

    Args:
        features: The number :math:`D` of features.
        activation: The elementwise :math:`\phi`, or ``None`` for the identity.
    """

    def __init__(self, features: int, activation: Activation | None = None) -> None:
        super().__init__()
        self.lu = nn.Parameter(torch.eye(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.activation = activation
        self._product = MatrixCache(folding.product, break_even=1)
        self._inverse = MatrixCache(folding.inverse, break_even=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, with shape :math:`(N, D)`, and the log-determinants, with shape :math:`(N,)`."""
        matrix = None if self.training else self._product.get(self.lu, x)
        if matrix is None:
            product, log_det = triangular.transform(self.lu, x)
            h = product + self.bias
            if self.activation is None:
                return h, log_det.expand(len(x))
            z, log_slope = self.activation(h)
            return z, log_det + log_slope.sum(1)
        return self._forward_folded(matrix, x)

    def inverse(self, z: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, D)`."""
        matrix = None if self.training else self._inverse.get(self.lu, z)
        if matrix is None:
            h = z if self.activation is None else self.activation.inverse(z)
            return triangular.solve(self.lu, h - self.bias)
        return self._inverse_folded(matrix, z)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - as torch has it
        """Choose train or eval mode; either discards the folded matrices."""
        self._product.clear()
        self._inverse.clear()
        return super().train(mode)

    def _forward_folded(self, matrix: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `forward`, given the matrix L U."""
        h, log_det = nn.functional.linear(x, matrix, self.bias), triangular.log_abs_det(self.lu)
        if self.activation is None:
            return h, log_det.expand(len(x))
        z, log_slopes = self.activation.evaluate_(h)
        return z, log_det + log_slopes

    def _inverse_folded(self, matrix: Tensor, z: Tensor) -> Tensor:
        """The same as `inverse`, given the inverse of the matrix L U."""
        h = z
        if self.activation is not None:
            h = torch.cat([self.activation.inverse(rows) for rows in split_for_cache(z)])
        return nn.functional.linear(h - self.bias, matrix)
