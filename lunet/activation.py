"""Invertible elementwise activations, the phi of an LU layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
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

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that make this activation again, as JSON can hold them."""

    def describe(self) -> dict[str, Any]:
        """Kind and arguments, from which `activation_from` makes this activation again."""
        return {"kind": type(self).__name__, **self.config()}


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

    The inverse is Newton's iteration. As :math:`\phi` is convex and increasing, and lies above both of its asymptotes
    :math:`a x` and :math:`x`, the start :math:`\min(y, y / a)` is never left of the solution, and each step moves left
    towards it without passing it: the iteration needs no other safeguard. It starts within :math:`(1 - a) \ln 2` of the
    wanted value and converges quadratically; `STEPS` steps leave a residual of a few units of the last place of
    :math:`1 + |x| \phi'(x) + |y|` for each slope that is allowed. Its gradient is that of the implicit function,
    :math:`d x / d y = 1 / \phi'(x)`, to any order; nothing is propagated back through the steps.

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
        value, log_slope, _ = _LeakySoftplus.apply(x, self.slope)
        return value, log_slope

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments :math:`\phi^{-1}(y)`, with the shape of ``y``. Cost: `STEPS` evaluations of the map."""
        return _InverseLeakySoftplus.apply(y, self.slope, self.STEPS)

    def config(self) -> dict[str, Any]:
        """The arguments that make this activation again."""
        return {"slope": self.slope}

    def extra_repr(self) -> str:
        """The slope, for ``print``."""
        return f"slope={self.slope}"


class _LeakySoftplus(torch.autograd.Function):
    """Value and log-slope; the third output, the sigmoid, serves both and the gradient too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
        sigmoid = torch.sigmoid(x)
        value = torch.add(x * slope, softplus(x, threshold=40), alpha=1 - slope)
        # Not in place: torch 2.11 compiles that to another gradient.
        return value, (sigmoid * (1 - slope) + slope).log(), sigmoid

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.slope = inputs[1]
        ctx.save_for_backward(output[2])

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_log_slope: Tensor, grad_sigmoid: Tensor) -> tuple[Tensor, None]:
        (sigmoid,) = ctx.saved_tensors
        slope = ctx.slope + (1 - ctx.slope) * sigmoid
        bend = sigmoid * (1 - sigmoid)
        return grad_value * slope + (grad_log_slope * (1 - ctx.slope) / slope + grad_sigmoid) * bend, None


class _InverseLeakySoftplus(torch.autograd.Function):
    """Newton's iteration forward, the implicit function theorem backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, slope: float, steps: int) -> Tensor:
        x = torch.minimum(y, y / slope)
        for _ in range(steps):
            sigmoid = torch.sigmoid(x)
            excess = torch.add(x * slope - y, softplus(x, threshold=40), alpha=1 - slope)
            x = x - excess / (slope + (1 - slope) * sigmoid)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int], output: Tensor) -> None:
        ctx.slope = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grad / (ctx.slope + (1 - ctx.slope) * torch.sigmoid(x)), None, None
