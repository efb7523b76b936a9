"""Invertible elementwise activations, the phi of an LU layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


class Activation(nn.Module, ABC):
    r"""An increasing map of the line, applied to each feature.

    A subclass says what value and log-slope are, in one pass, and how the map is inverted.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values :math:`\phi(x)` and the log-slopes :math:`\ln \phi'(x)`, each with the shape of ``x``."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments :math:`\phi^{-1}(y)`, with the shape of ``y``."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that make this activation again."""


class LeakySoftplus(Activation):
    r"""The leaky softplus :math:`\phi(x) = a x + (1 - a) \ln(1 + e^x)`, with slopes between :math:`a` and 1.

    The inverse is Newton's iteration. As :math:`\phi` is convex and increasing, and lies above both of its asymptotes
    :math:`a x` and :math:`x`, the start :math:`\min(y, y / a)` is never left of the solution, and each step moves left
    towards it without passing it: the iteration needs no safeguard. It starts within :math:`(1 - a) \ln 2` of the
    wanted value and converges quadratically; `STEPS` steps leave a residual of a few units of the last place of
    :math:`1 + |x| \phi'(x) + |y|` for each slope that is allowed. First derivatives pass through the last step alone,
    which is the implicit function theorem: :math:`d x / d y = 1 / \phi'(x)`; second derivatives are not those of the
    inverse.

    Args:
        slope: The lower slope :math:`a`, at least 0.001 and below 1.

    References:
        LU-Net: Invertible Neural Networks Based on Matrix Factorization (Chan, Penquitt and Gottschalk, 2023),
        https://arxiv.org/abs/2302.10524
    """

    STEPS = 9

    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        if not 0.001 <= slope < 1:
            raise ValueError(f"slope is {slope}; the leaky softplus needs one between 0.001 and 1")
        self.slope = float(slope)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values and log-slopes, each with the shape of ``x``."""
        return self._value(x), self._slope(x).log()

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments :math:`\phi^{-1}(y)`, with the shape of ``y``. Cost: `STEPS` evaluations of the map."""
        with torch.no_grad():
            x = torch.minimum(y, y / self.slope)
            for _ in range(self.STEPS - 1):
                x = x - (self._value(x) - y) / self._slope(x)
        return x - (self._value(x) - y) / self._slope(x)

    def config(self) -> dict[str, Any]:
        """The arguments that make this activation again."""
        return {"slope": self.slope}

    def extra_repr(self) -> str:
        """The slope, for ``print``."""
        return f"slope={self.slope}"

    def _value(self, x: Tensor) -> Tensor:
        return self.slope * x + (1 - self.slope) * softplus(x, threshold=40)

    def _slope(self, x: Tensor) -> Tensor:
        return self.slope + (1 - self.slope) * torch.sigmoid(x)
