"""Invertible elementwise activations, the phi of an LU layer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


class Activation(nn.Module, ABC):
    r"""An increasing map of the line, applied to each feature.

    A subclass says what value and log-slope are, in one pass, how the map is inverted, and what arguments make it.
    """

    kinds: ClassVar[dict[str, type[Activation]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Activation.kinds[cls.__name__] = cls

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values :math:`\phi(x)` and the log-slopes :math:`\ln \phi'(x)`, each with the shape of ``x``."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments :math:`\phi^{-1}(y)`, with the shape of ``y``."""

    @torch.no_grad()
    def evaluate_(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, and the sum of the log-slopes of each row, without a gradient; ``x`` may be overwritten.

        Args:
            x: A batch, with shape :math:`(N, D)`.

        Returns:
            The values, with shape :math:`(N, D)`, and :math:`\sum_d \ln \phi'(x_d)`, with shape :math:`(N,)`.
        """
        value, log_slope = self(x)
        return value, log_slope.sum(1)

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that make this activation again, as JSON can hold them."""

    def describe(self) -> dict[str, Any]:
        """Kind and arguments, from which `activation_from` makes this activation again."""
        return {"kind": type(self).__name__, **self.config()}


def in_cache(x: Tensor) -> tuple[Tensor, ...]:
    """Views of a batch with shape (N, D), of as many rows each as elementwise maps can treat in a CPU's cache."""
    return x.split(max(1, 2**18 // max(1, x.shape[1])))


def activation_from(description: Mapping[str, Any]) -> Activation:
    """The activation that `Activation.describe` has described, without what it had learnt.

    Raises:
        ValueError: If there is no such kind.
    """
    options = dict(description)
    kind = options.pop("kind", None)
    if kind not in Activation.kinds:
        raise ValueError(f"activation kind is {kind!r}; there are: {', '.join(Activation.kinds)}")
    return Activation.kinds[kind](**options)


class LeakySoftplus(Activation):
    r"""The leaky softplus :math:`\phi(x) = a x + (1 - a) \ln(1 + e^x)`, with slopes between :math:`a` and 1.

    The inverse starts at that of :math:`a x + (1 - a) (x + \sqrt{x^2 + 4 \ln^2 2}) / 2`, which is in closed form, equal
    at 0 and near elsewhere, and takes Halley's steps, which converge cubically: as many as leave, for this slope and
    the dtype, a residual of a few units of the last place of :math:`1 + |x| \phi'(x) + |y|`, which is two in float32 at
    0.1 and seven in float64 at 0.001. Its gradient is that of the implicit function, :math:`d x / d y = 1 / \phi'(x)`,
    to any order; nothing is propagated back through the steps.

    Args:
        slope: The lower slope :math:`a`, at least 0.001 and below 1.

    References:
        LU-Net: Invertible Neural Networks Based on Matrix Factorization (Chan, Penquitt and Gottschalk, 2023),
        https://arxiv.org/abs/2302.10524
    """

    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        if not 0.001 <= slope < 1:
            raise ValueError(f"slope is {slope}; the leaky softplus needs one between 0.001 and 1")
        self.slope = float(slope)
        self.steps = {dtype: _steps_needed(self.slope, dtype) for dtype in (torch.float32, torch.float64)}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values and log-slopes, each with the shape of ``x``."""
        value, log_slope, _ = _LeakySoftplus.apply(x, self.slope)
        return value, log_slope

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments :math:`\phi^{-1}(y)`, with the shape of ``y``. Cost: that of some five values."""
        return _InverseLeakySoftplus.apply(y, self.slope, self.steps.get(y.dtype, self.steps[torch.float32]))

    @torch.no_grad()
    def evaluate_(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, in the place of ``x``, and the sum of the log-slopes of each row."""
        return x, torch.cat([self._evaluate_rows_(rows) for rows in in_cache(x)])

    def _evaluate_rows_(self, x: Tensor) -> Tensor:
        slope = torch.sigmoid(x).mul_(1 - self.slope).add_(self.slope)
        # A logarithm costs as much as ten products: as many slopes as stay in the range of the dtype go into one.
        together = math.log(torch.finfo(x.dtype).tiny) / math.log(self.slope)
        while together >= 2 and slope.shape[1] % 2 == 0:
            left, right = slope.chunk(2, dim=1)
            slope, together = left.mul_(right), together / 2
        log_slopes = slope.log_().sum(1)
        del slope  # its memory serves the next line
        upper = softplus(x, threshold=40)
        x.mul_(self.slope).add_(upper, alpha=1 - self.slope)
        return log_slopes

    def config(self) -> dict[str, Any]:
        """The arguments that make this activation again."""
        return {"slope": self.slope}

    def extra_repr(self) -> str:
        """The slope, for ``print``."""
        return f"slope={self.slope}"


class _LeakySoftplus(torch.autograd.Function):
    """Value, log-slope and slope; the slope serves the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, lowest: float) -> tuple[Tensor, Tensor, Tensor]:
        value = torch.add(x * lowest, softplus(x, threshold=40), alpha=1 - lowest)
        # Not in place: torch 2.11 compiles that to another gradient.
        slope = torch.add(x.new_full((), lowest), torch.sigmoid(x), alpha=1 - lowest)
        return value, slope.log(), slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.lowest = inputs[1]
        ctx.save_for_backward(output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        none = slope.new_zeros(())
        grad_value, grad_log_slope, grad_slope = (none if grad is None else grad for grad in grads)
        grad_log_slope = grad_log_slope / slope
        if grad_slope is not none:
            grad_log_slope = grad_log_slope + grad_slope
        # The slope of the slope is s (1 - s) (1 - a) for the sigmoid s = (slope - a) / (1 - a).
        bend = (slope - ctx.lowest) * (1 - slope)
        return torch.addcmul(grad_value * slope, grad_log_slope, bend, value=1 / (1 - ctx.lowest)), None


class _InverseLeakySoftplus(torch.autograd.Function):
    """Halley's iteration forward, the implicit function theorem backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, slope: float, steps: int) -> Tensor:
        return _invert(y, slope, steps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int], output: Tensor) -> None:
        ctx.slope = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grad / (ctx.slope + (1 - ctx.slope) * torch.sigmoid(x)), None, None


def _invert(y: Tensor, slope: float, steps: int) -> Tensor:
    """The start and Halley's steps x - f / (f' - f f'' / 2 f') for f(x) = k x + softplus(x) - y / (1 - a)."""
    k = slope / (1 - slope)
    y = y / (1 - slope)
    # The inverse of k x + (x + sqrt(x^2 + 4 ln^2 2)) / 2.
    x = torch.hypot(y, y.new_full((), 2 * math.log(2) * math.sqrt(k * (k + 1))))
    x.mul_(-0.5).add_(y, alpha=k + 0.5).div_(k * (k + 1))
    # In place: to get memory from the system costs more than the arithmetic.
    for _ in range(steps):
        sigmoid = torch.sigmoid(x)
        bend = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1)
        slope_of_f = sigmoid.add_(k)
        excess = softplus(x, threshold=40).add_(x, alpha=k).sub_(y)
        bend.mul_(excess).div_(slope_of_f)
        x.addcdiv_(excess, slope_of_f.sub_(bend, alpha=0.5), value=-1)
    return x


@cache
def _steps_needed(slope: float, dtype: torch.dtype) -> int:
    """How many steps it takes until nothing but a rounding error is left, at most 9."""
    x = torch.linspace(-40, 40, 4001, dtype=torch.float64, device="cpu")
    y = torch.add(x * slope, softplus(x), alpha=1 - slope).to(dtype)

    def worst(steps: int) -> float:
        found = _invert(y, slope, steps).double()
        residual = torch.add(found * slope - y, softplus(found, threshold=40), alpha=1 - slope)
        unit = 1 + y.abs() + found.abs() * (torch.sigmoid(found) * (1 - slope) + slope)
        return float((residual / unit).abs().amax())

    return next((steps for steps in range(9) if worst(steps) <= 2 * torch.finfo(dtype).eps), 9)
