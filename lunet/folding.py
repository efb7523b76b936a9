"""Both triangles of an LU layer as one dense matrix, for evaluation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lunet import triangular

# Rows from which one dense product is faster than two triangular ones, the look at the triangles included.
MINIMUM_ROWS = 64
# Above this factor a product with the inverse loses digits that two solves keep.
WORST_AMPLIFICATION = 1e3


class Fold:
    r"""A matrix made of an LU layer's triangles once enough rows have passed to be worth it, kept until they change.

    A change is seen by the counter that torch keeps of them, and by their bits, for the sake of those behind its back.

    Cost: :math:`O(D^3)` to make, :math:`O(D^2)` to look.

    Args:
        make: Makes the matrix of both triangles in compact form, or ``None`` where there should be none.
        worth: It is made when as many times D rows have passed, whose products have cost about as much.
    """

    def __init__(self, make: Callable[[Tensor], Tensor | None], worth: int) -> None:
        self._make, self._worth = make, worth
        self._state: tuple[object, ...] | None = None
        self._matrix: Tensor | None = None
        self._rows = 0

    def of(self, lu: Tensor, x: Tensor) -> Tensor | None:
        """The matrix, with shape :math:`(D, D)`, where it pays for a batch with shape :math:`(N, D)`, else ``None``."""
        if not _pays(lu, x):
            return None
        words = lu.view(torch.int64 if lu.shape[1] * lu.element_size() % 8 == 0 else torch.int32)
        state = (lu.dtype, lu.data_ptr(), lu._version, int(words.sum()))
        if state != self._state:
            self.drop()
            self._state = state
        before, self._rows = self._rows, self._rows + len(x)
        if before < self._worth * len(lu) <= self._rows:
            self._matrix = self._make(lu.detach())
        return self._matrix

    def drop(self) -> None:
        """Forget the matrix, and the rows that have passed."""
        self._state, self._matrix, self._rows = None, None, 0


def product(lu: Tensor) -> Tensor:
    r"""The matrix :math:`L U`."""
    lower, upper = triangular.unpack(lu)
    return lower @ upper


def inverse(lu: Tensor) -> Tensor | None:
    r"""The matrix :math:`(L U)^{-1}`, exact to the last place; ``None`` if a product with it would lose digits.

    Of the latents it leaves rounding errors times :math:`\| |L U| |(L U)^{-1}| \|_\infty` at most, which may be 1,000.
    Unlike a condition number of norms, that does not depend on how the inputs are scaled.
    """
    exact = lu.double()
    found = triangular.solve(exact, torch.eye(len(lu), dtype=torch.float64, device=lu.device)).mT
    lower, upper = triangular.unpack(exact)
    amplified = (lower @ upper).abs() @ found.abs().sum(1)
    return found.to(lu.dtype) if bool((amplified <= WORST_AMPLIFICATION).all()) else None


def _pays(lu: Tensor, x: Tensor) -> bool:
    """Whether there is a plain parameter, no gradient is wanted, and one product on a CPU is faster than two."""
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
