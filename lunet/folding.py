"""For evaluation: both triangles of an LU layer multiplied into one dense matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lunet import triangular

# From this many rows one dense product is faster than two triangular ones, the check for changes included.
MINIMUM_ROWS = 64
# Above this amplification of rounding errors a product with the inverse loses digits that two solves keep.
MAXIMUM_AMPLIFICATION = 1e3


def product(lu: Tensor) -> Tensor:
    r"""The matrix :math:`L U`."""
    lower, upper = triangular.unpack(lu)
    return lower @ upper


def inverse(lu: Tensor) -> Tensor | None:
    r"""The matrix :math:`(L U)^{-1}`, computed in float64; ``None`` if a product with it would lose digits.

    A product with it leaves rounding errors in the latents that are amplified by
    :math:`\| |L U| |(L U)^{-1}| \|_\infty` at most, which may be 1,000. Unlike the condition number, this does not
    depend on the scales of the inputs.
    """
    lu_double = lu.double()
    matrix = triangular.solve(lu_double, torch.eye(len(lu), dtype=torch.float64, device=lu.device)).mT
    lower, upper = triangular.unpack(lu_double)
    amplification = (lower @ upper).abs() @ matrix.abs().sum(1)
    return matrix.to(lu.dtype) if bool((amplification <= MAXIMUM_AMPLIFICATION).all()) else None


class MatrixCache:
    r"""A matrix computed from an LU layer's triangles once it pays, and kept until they change.

    Changes are detected by torch's version counter, and by the bits for changes that bypass it.

    Cost: :math:`O(D^3)` to compute the matrix, :math:`O(D^2)` to detect a change.

    Args:
        compute: Computes the matrix from both triangles in compact form, or returns ``None`` if there should be none.
        break_even: The matrix is computed after ``break_even * D`` rows, whose products have cost about as much.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor | None], break_even: int) -> None:
        self._compute, self._break_even = compute, break_even
        self._state: tuple[object, ...] | None = None
        self._matrix: Tensor | None = None
        self._rows = 0

    def get(self, lu: Tensor, x: Tensor) -> Tensor | None:
        """The matrix, with shape :math:`(D, D)`, if it pays for a batch with shape :math:`(N, D)`, else ``None``."""
        if not _pays(lu, x):
            return None
        words = lu.view(torch.int64 if lu.shape[1] * lu.element_size() % 8 == 0 else torch.int32)
        state = (lu.dtype, lu.data_ptr(), lu._version, int(words.sum()))
        if state != self._state:
            self.clear()
            self._state = state
        rows_before, self._rows = self._rows, self._rows + len(x)
        if rows_before < self._break_even * len(lu) <= self._rows:
            self._matrix = self._compute(lu.detach())
        return self._matrix

    def clear(self) -> None:
        """Discard the matrix and the count of rows."""
        self._state, self._matrix, self._rows = None, None, 0


def _pays(lu: Tensor, x: Tensor) -> bool:
    """Whether one dense product is faster: an ordinary parameter on a CPU, no gradients, and enough rows."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and isinstance(lu, nn.Parameter)
        and not lu.is_inference()
        and lu.device.type == "cpu"
        and lu.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and len(x) >= MINIMUM_ROWS
    )
