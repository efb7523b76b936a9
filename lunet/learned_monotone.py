"""A learned activation: a monotone quadratic spline for each feature."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from lunet.activation import Activation


class LearnedMonotone(Activation):
    r"""A monotone quadratic spline with separate parameters for each feature.

    The slope :math:`\phi'` is linear between equally spaced knots, where it is
    :math:`s_k = \epsilon + (1 - \epsilon) e^{\theta_k}` with :math:`\epsilon = 2^{-10}`. :math:`\phi` is the integral
    of the slope, and maps one knot of each feature, the anchor, to itself. So :math:`\phi` is increasing by
    construction, values and slopes cost the same for any number of knots, and the inverse is the root of a quadratic
    equation, in closed form, with an error of a few roundings. It is initialised to the identity.

    Outside the knots the slope is the mean slope between them. The slope at the last knot may be many times steeper if
    the data have a sharp edge there, and would map an unseen value far beyond the edge away from all others.

    Cost: :math:`O(N D)` for values and slopes, :math:`O(N D \log K)` for the inverse; :math:`D (K + 1)` parameters.

    Args:
        features: The number :math:`D` of features.
        bins: The number :math:`K` of intervals between knots.
        bound: The knots extend from ``-bound`` to ``bound``, until `fit_` moves them to the range of the data.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Neural Importance Sampling (Müller, McWilliams, Rousselle, Gross and Novák, 2019), the piecewise quadratic
        transform, https://arxiv.org/abs/1808.03856
    """

    SLOPE_MIN = 2.0**-10

    def __init__(self, features: int, bins: int = 16, bound: float = 4.0) -> None:
        super().__init__()
        for name, value, allowed in (
            ("features", features, features >= 1), ("bins", bins, bins >= 2), ("bound", bound, 0 < bound < math.inf)
        ):  # fmt: skip
            if not allowed:
                raise ValueError(f"{name} is {value}; a spline needs 1 feature, 2 bins and a bound above 0 at least")
        self.features, self.bins, self.bound = features, bins, float(bound)
        self.log_slopes = nn.Parameter(torch.zeros(features, bins + 1))
        self.left: Tensor
        self.width: Tensor
        self.anchor: Tensor
        self.register_buffer("left", torch.full((features, 1), -self.bound))
        self.register_buffer("width", torch.full((features, 1), 2 * self.bound / bins))
        self.register_buffer("anchor", torch.full((features, 1), bins // 2))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"features": self.features, "bins": self.bins, "bound": self.bound}

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return ", ".join(f"{name}={value}" for name, value in self.config().items())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values and log-slopes, each with the shape :math:`(N, D)` of ``x``."""
        slopes, values, outer = self._tables()
        value, log_slope, *_ = _Spline.apply(x.mT, slopes, values, outer, self.left, self.width)
        return value.mT, log_slope.mT

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments :math:`\phi^{-1}(y)`, with the shape :math:`(N, D)` of ``y``."""
        slopes, values, outer = self._tables()
        target = y.mT.contiguous()
        bins = (torch.searchsorted(values.detach(), target.detach(), right=True) - 1).clamp(0, self.bins - 1)
        slope, rise = slopes.gather(1, bins), slopes.diff().gather(1, bins)
        # In bin widths: the distance of the value from that at the bin's first knot, inside and outside the knots.
        above = (target - values.gather(1, bins)) / self.width
        within = torch.minimum(above.clamp(min=0), slope + rise / 2)
        share = 2 * within / (slope + (slope.square() + 2 * rise * within).sqrt())
        beyond = (above - within) / outer
        return (self.left + self.width * (bins + share + beyond)).mT

    @torch.no_grad()
    def fit_(self, x: Tensor, *, smoothing: float = 0.02) -> Self:
        r"""Spread the knots over a sample, and map each feature approximately to a standard normal.

        Cost: sorting the sample, :math:`O(D N \log N)`.

        Args:
            x: The sample, with shape :math:`(N, D)`.
            smoothing: The weight of a uniform distribution that is mixed into each feature's histogram, above 0.

        Raises:
            ValueError: If a feature is constant on the sample, or a value is not finite.
        """
        left, right = x.amin(0)[:, None], x.amax(0)[:, None]
        if not bool((left.isfinite() & right.isfinite() & (left < right)).all()):
            raise ValueError("a spline is fitted to features with two different values or more, all of them finite")
        self.left.copy_(left)
        self.width.copy_((right - left) / self.bins)
        knots = (self.left + self.width * torch.arange(self.bins + 1, device=x.device)).contiguous()
        counts = torch.searchsorted(x.mT.contiguous().sort(1).values, knots, right=True)
        counts[:, 0], counts[:, -1] = 0, len(x)
        uniform = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64, device=x.device)
        cumulative = (1 - smoothing) * counts / len(x) + smoothing * uniform
        self.anchor.copy_(cumulative.diff().argmax(1, keepdim=True))
        quantiles = torch.special.ndtri(cumulative.clamp(0.5 / len(x), 1 - 0.5 / len(x)))
        log_slopes = (quantiles.diff() / self.width).log()
        padded = torch.cat([log_slopes[:, :1], log_slopes, log_slopes[:, -1:]], dim=1)
        self.log_slopes.copy_((padded[:, :-1] + padded[:, 1:]) / 2)
        return self

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes and values at the knots, each with shape (D, K + 1), and the slope outside them, with shape (D, 1)."""
        slopes = self.SLOPE_MIN + (1 - self.SLOPE_MIN) * self.log_slopes.exp()
        rises = (slopes[:, 1:] + slopes[:, :-1]) * (self.width / 2)
        values = torch.cat([torch.zeros_like(self.left), rises.cumsum(1)], dim=1)
        outer = values[:, -1:] / (self.width * self.bins)
        return slopes, values - values.gather(1, self.anchor) + self.left + self.width * self.anchor, outer


class _Spline(torch.autograd.Function):
    """Values and log-slopes of arguments with shape (D, N); the other outputs are saved for the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, slopes: Tensor, values: Tensor, outer: Tensor, left: Tensor, width: Tensor
    ) -> tuple[Tensor, ...]:
        features, knots = slopes.shape
        position = (x - left) / width
        inside = position.clamp(0, knots - 1)
        bins = inside.nan_to_num(0.0).floor().clamp(max=knots - 2)
        share, beyond = inside - bins, position - inside
        rows = torch.arange(features, device=x.device, dtype=torch.int32)[:, None] * knots
        index = (bins.int() + rows).flatten()
        rises = torch.cat([slopes.diff(), torch.zeros_like(left)], dim=1)
        start, rise, value = (table.flatten().index_select(0, index).view_as(x) for table in (slopes, rises, values))
        slope = start + rise * share
        value = value + width * (share * (start + slope) / 2 + beyond * outer)
        return value, torch.where(beyond == 0, slope, outer).log(), index, share, beyond, slope, rise

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, slopes, _, outer, _, width = inputs
        ctx.shape = slopes.shape
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(outer, width, *output[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        outer, width, index, share, beyond, slope, rise = ctx.saved_tensors
        grad_value, grad_log_slope, _, grad_share, grad_beyond, grad_slope, grad_rise = (
            0.0 if grad is None else grad for grad in grads
        )
        within = beyond == 0
        scaled = torch.zeros_like(slope) + grad_value * width
        grad_log_slope = grad_log_slope / torch.where(within, slope, outer)
        grad_slope = grad_slope + grad_log_slope * within + scaled * (share / 2)
        grad_rise = grad_rise + grad_slope * share
        grad_share = grad_share + grad_slope * rise + scaled * (slope - rise * share / 2)
        grad_x = torch.where(within, grad_share, grad_beyond + scaled * outer) / width
        grad_start = grad_slope + scaled * share / 2 - grad_rise
        grad_outer = (grad_log_slope * ~within + scaled * beyond).sum(1, keepdim=True)
        zeros = slope.new_zeros(ctx.shape.numel())
        grad_slopes = zeros.index_add(0, index, grad_start.flatten()).index_add(0, index + 1, grad_rise.flatten())
        grad_values = zeros.index_add(0, index, (scaled / width).flatten())
        return grad_x, grad_slopes.view(ctx.shape), grad_values.view(ctx.shape), grad_outer, None, None
