"""Invertible elementwise activations, the phi of an LU layer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lunet.registry import find, register, whole_config


class Activation(nn.Module, ABC):
    r"""An increasing map of the real line, applied to each feature.

    A subclass defines the value and the log-slope, computed in one pass, the inverse, and the constructor's arguments.
    Flows with it can be saved and loaded by its name, ``kind`` in the class statement or else the name of the class.

    Attributes:
        kinds: Every subclass by its name.
        kind: The name of the class.
    """

    kinds: ClassVar[dict[str, type[Activation]]] = {}
    kind: ClassVar[str]

    def __init_subclass__(cls, *, kind: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kind = kind or cls.__name__
        register(Activation.kinds, cls.kind, cls)

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values :math:`\phi(x)` and the log-slopes :math:`\ln \phi'(x)`, each with the shape of ``x``."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments :math:`\phi^{-1}(y)`, with the shape of ``y``."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as values that JSON can represent."""

    def describe(self) -> dict[str, Any]:
        """Kind and arguments, from which `activation_from` constructs an equal activation."""
        return {"kind": self.kind, **whole_config(self)}

    @torch.no_grad()
    def evaluate_(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values and the sum of the log-slopes of each row, without gradients; ``x`` may be overwritten.

        Args:
            x: A batch, with shape :math:`(N, D)`.

        Returns:
            The values, with shape :math:`(N, D)`, and :math:`\sum_d \ln \phi'(x_d)`, with shape :math:`(N,)`.
        """
        value, log_slope = self(x)
        return value, log_slope.sum(1)


def activation_from(description: Mapping[str, Any]) -> Activation:
    """A new activation from the result of `Activation.describe`, without learned parameters.

    Raises:
        UnknownKindError: If the kind is unknown.
    """
    options = dict(description)
    return find(Activation.kinds, options.pop("kind", None))(**options)


def activation_arguments(cls: type[nn.Module]) -> list[str]:
    """The arguments of a constructor that are activations by their annotations, such as ``Activation | None``."""
    # As text, since a name in an annotation may be imported for type checkers alone.
    return [name for name, argument in signature(cls).parameters.items() if "Activation" in str(argument.annotation)]


def _leaky_softplus(x: Tensor, a: float) -> Tensor:
    """The value a x + (1 - a) ln(1 + e^x)."""
    return torch.add(x * a, softplus(x, threshold=40), alpha=1 - a)


def _leaky_softplus_slope(x: Tensor, a: float) -> Tensor:
    """The slope a + (1 - a) sigmoid(x)."""
    # Not in place: torch 2.11 compiles that to a different gradient.
    return torch.add(x.new_full((), a), torch.sigmoid(x), alpha=1 - a)


class LeakySoftplus(Activation):
    r"""The leaky softplus :math:`\phi(x) = a x + (1 - a) \ln(1 + e^x)`, with slopes between :math:`a` and 1.

    The inverse iterates from the inverse of :math:`a x + (1 - a) (x + \sqrt{x^2 + 4 \ln^2 2}) / 2`, which has a closed
    form, is equal at 0 and close elsewhere. It takes Halley's steps, which converge cubically. Their number depends on
    the slope and the dtype, such that the residual is at most a few units in the last place of
    :math:`1 + |x| \phi'(x) + |y|`: two steps in float32 at slope 0.1, seven in float64 at 0.001. The gradient of the
    inverse is that of the implicit function, :math:`d x / d y = 1 / \phi'(x)`, to any order; nothing is propagated back
    through the steps.

    Args:
        slope: The lower slope :math:`a`, at least 0.001 and below 1.

    Raises:
        ValueError: If the slope is out of range.

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
        r"""The values and the log-slopes, each with the shape of ``x``."""
        value, log_slope, _ = _LeakySoftplus.apply(x, self.slope)
        return value, log_slope

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments :math:`\phi^{-1}(y)`, with the shape of ``y``. Cost: that of about five values."""
        return _InverseLeakySoftplus.apply(y, self.slope, self.steps.get(y.dtype, self.steps[torch.float32]))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"slope": self.slope}

    def extra_repr(self) -> str:
        """The slope, for ``print``."""
        return f"slope={self.slope}"

    @torch.no_grad()
    def evaluate_(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, written over ``x``, and the sum of the log-slopes of each row."""
        return x, torch.cat([self._evaluate_rows_(rows) for rows in split_for_cache(x)])

    def _evaluate_rows_(self, x: Tensor) -> Tensor:
        slope = torch.sigmoid(x).mul_(1 - self.slope).add_(self.slope)
        # A logarithm costs as much as ten products: it is taken of as many slopes together as the dtype can represent.
        factors = math.log(torch.finfo(x.dtype).tiny) / math.log(self.slope)
        while factors >= 2 and slope.shape[1] % 2 == 0:
            left, right = slope.chunk(2, dim=1)
            slope, factors = left.mul_(right), factors / 2
        log_slopes = slope.log_().sum(1)
        del slope  # the next line reuses its memory
        upper = softplus(x, threshold=40)
        x.mul_(self.slope).add_(upper, alpha=1 - self.slope)
        return log_slopes


class _LeakySoftplus(torch.autograd.Function):
    """Value, log-slope and slope; the slope is saved for the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, a: float) -> tuple[Tensor, Tensor, Tensor]:
        slope = _leaky_softplus_slope(x, a)
        return _leaky_softplus(x, a), slope.log(), slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.a = inputs[1]
        ctx.save_for_backward(output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        zero = slope.new_zeros(())
        grad_value, grad_log_slope, grad_slope = (zero if grad is None else grad for grad in grads)
        grad_log_slope = grad_log_slope / slope
        if grad_slope is not zero:
            grad_log_slope = grad_log_slope + grad_slope
        # The second derivative is (1 - a) s (1 - s) with the sigmoid s = (slope - a) / (1 - a).
        curvature = (slope - ctx.a) * (1 - slope)
        return torch.addcmul(grad_value * slope, grad_log_slope, curvature, value=1 / (1 - ctx.a)), None


class _InverseLeakySoftplus(torch.autograd.Function):
    """Halley's iteration forward, the implicit function theorem backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, a: float, steps: int) -> Tensor:
        return _invert(y, a, steps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int], output: Tensor) -> None:
        ctx.a = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grad / (ctx.a + (1 - ctx.a) * torch.sigmoid(x)), None, None


def _invert(y: Tensor, a: float, steps: int) -> Tensor:
    """Halley's steps x - f / (f' - f f'' / 2 f') for f(x) = k x + softplus(x) - y / (1 - a) with k = a / (1 - a)."""
    k = a / (1 - a)
    y = y / (1 - a)
    # The initial value is the inverse of k x + (x + sqrt(x^2 + 4 ln^2 2)) / 2.
    x = torch.hypot(y, y.new_full((), 2 * math.log(2) * math.sqrt(k * (k + 1))))
    x.mul_(-0.5).add_(y, alpha=k + 0.5).div_(k * (k + 1))
    # In place, because allocating memory costs more than the arithmetic.
    for _ in range(steps):
        sigmoid = torch.sigmoid(x)
        correction = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1)
        derivative = sigmoid.add_(k)
        residual = softplus(x, threshold=40).add_(x, alpha=k).sub_(y)
        correction.mul_(residual).div_(derivative)
        x.addcdiv_(residual, derivative.sub_(correction, alpha=0.5), value=-1)
    return x


@cache
def _steps_needed(a: float, dtype: torch.dtype) -> int:
    """The number of steps after which only a rounding error is left, at most 9."""
    x = torch.linspace(-40, 40, 4001, dtype=torch.float64, device="cpu")
    y = torch.add(x * a, softplus(x), alpha=1 - a).to(dtype)

    def largest_error(steps: int) -> float:
        x = _invert(y, a, steps).double()
        residual = torch.add(x * a - y, softplus(x, threshold=40), alpha=1 - a)
        unit = 1 + y.abs() + x.abs() * (torch.sigmoid(x) * (1 - a) + a)
        return float((residual / unit).abs().amax())

    return next((steps for steps in range(9) if largest_error(steps) <= 2 * torch.finfo(dtype).eps), 9)


def split_for_cache(x: Tensor) -> tuple[Tensor, ...]:
    """Views of consecutive rows of a batch with shape (N, D), each small enough for a CPU's cache."""
    return x.split(max(1, 2**18 // max(1, x.shape[1])))
