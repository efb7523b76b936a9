"""Bends each feature of a sample to a standard normal by a chain of activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lunet.activation import LeakySoftplus

# Points that stand for the values of a feature, and for those of all features together, which have a small share.
POINTS, POOL_ROWS, POOL_POINTS, POOL_SHARE = 128, 256, 32, 0.005
# Starts of a feature's chain, all of which take the first steps, and those that take the others.
STARTS, FINALISTS = 16, 2
FIRST_STEPS, STEPS = 60, 300
RATE = 0.15


@torch.no_grad()
def fit_marginals(
    x: Tensor, activation: LeakySoftplus, bends: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""Scales and shifts that bend each feature of a sample to a standard normal.

    Feature :math:`d` becomes :math:`a_B \phi(\dots \phi(a_0 x_d + b_0) \dots) + b_B`, fitted by maximum likelihood with
    Adam from random starts, of which each feature keeps its best. A share of 0.005 is the values of all features
    together, so that a value which a feature never takes in the sample keeps a density.

    Cost: :math:`O(D N \log N)` to sort the sample; then some seconds of a CPU for 784 features, whatever :math:`N`.

    Args:
        x: The sample, with shape :math:`(N, D)`.
        activation: The elementwise :math:`\phi`.
        bends: The number :math:`B` of activations.
        generator: Where the random starts come from, on the sample's device.

    Returns:
        The scales and the shifts, each with shape :math:`(B + 1, D)`.

    Raises:
        ValueError: If a feature is constant on the sample, or a value is not finite.
    """
    std, mean = torch.std_mean(x, dim=0)
    if not bool((std.isfinite() & (std > 0)).all()):
        raise ValueError("a marginal is fitted to features with two different values or more, all of them finite")
    points, weights = representatives((x - mean) / std)
    signs, log_scales, shifts = _random_starts(points, weights, activation, bends, generator)
    for starts, steps in ((STARTS, FIRST_STEPS), (FINALISTS, STEPS)):
        losses = _descend(points, weights, activation, signs, log_scales, shifts, steps)
        kept = losses.nan_to_num(math.inf).argsort(0)[: FINALISTS if starts == STARTS else 1]
        index = kept.expand(bends + 1, -1, -1)
        signs, log_scales, shifts = (values.gather(1, index) for values in (signs, log_scales, shifts))
    scales, shifts = (signs * log_scales.exp())[:, 0], shifts[:, 0]
    shifts[0] -= scales[0] * mean / std
    scales[0] /= std
    return scales, shifts


def representatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """Points with shape (Q, D), close where the tails are, the outermost values among them; and their weights (Q,)."""
    rows = len(x)
    end = math.log(2 * rows)
    cuts = (rows * torch.linspace(-end, end, POINTS + 1, dtype=torch.float64).sigmoid()).round().long().unique()
    ordered = x.mT.contiguous().sort(1).values.mT
    pool = x[:POOL_ROWS].flatten().sort().values
    middles = ((torch.arange(POOL_POINTS) + 0.5) / POOL_POINTS * len(pool)).long()
    points = torch.cat([ordered[(cuts[1:] + cuts[:-1] - 1) // 2], pool[middles, None].expand(-1, x.shape[1])])
    weights = torch.cat([
        (1 - POOL_SHARE) / rows * cuts.diff(), torch.full((POOL_POINTS,), POOL_SHARE / POOL_POINTS, dtype=torch.float64)
    ])  # fmt: skip
    return points, weights.to(x)


def _random_starts(
    points: Tensor, weights: Tensor, activation: LeakySoftplus, bends: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Signs, logarithms of scales, and shifts, each with shape (B + 1, starts, D): each bend where a point is."""
    features = points.shape[1]
    sharpness = 2 + 4 * torch.rand(bends, STARTS, features, generator=generator, device=points.device)
    places = torch.multinomial(weights, bends * STARTS * features, replacement=True, generator=generator)
    # Each combination of the signs of three bends, and so of ways to bend; further ones repeat them.
    bits = torch.arange(STARTS)[:, None] >> (torch.arange(bends) % 3)[:, None, None] & 1
    signs = (1 - 2 * bits).to(points).expand(-1, -1, features)
    values, log_scales, shifts = points[:, None].expand(-1, STARTS, -1), [], []
    for sign, stretch, place in zip(signs, sharpness.to(points), places.view_as(sharpness), strict=True):
        scale = sign * stretch / _moments(values, weights)[1]
        log_scales.append(scale.abs().log())
        shifts.append(-scale * values.gather(0, place[None])[0])
        values, _ = activation(scale * values + shifts[-1])
    mean, std = _moments(values, weights)
    return (
        torch.cat([signs, torch.ones_like(signs[:1])]),
        torch.stack([*log_scales, -std.log()]),
        torch.stack([*shifts, -mean / std]),
    )


def _moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over the first dimension."""
    mean = torch.einsum("q,qkd->kd", weights, values)
    return mean, torch.einsum("q,qkd->kd", weights, (values - mean).square()).sqrt()


@torch.enable_grad()
def _descend(
    points: Tensor,
    weights: Tensor,
    activation: LeakySoftplus,
    signs: Tensor,
    log_scales: Tensor,
    shifts: Tensor,
    steps: int,
) -> Tensor:
    """Fit the chains in place by Adam; returns the negative log-likelihood of each, with shape (starts, D)."""
    parameters = [log_scales.requires_grad_(), shifts.requires_grad_()]
    optimizer = torch.optim.Adam(parameters, RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        _negative_log_likelihoods(points, weights, activation, signs, log_scales, shifts).sum().backward()
        optimizer.step()
        schedule.step()
    for parameter in parameters:
        parameter.requires_grad_(False)  # noqa: FBT003 - as torch has it
    return _negative_log_likelihoods(points, weights, activation, signs, log_scales, shifts)


def _negative_log_likelihoods(
    points: Tensor, weights: Tensor, activation: LeakySoftplus, signs: Tensor, log_scales: Tensor, shifts: Tensor
) -> Tensor:
    """Of each chain, but for a constant, with shape (starts, D)."""
    scales = signs * log_scales.exp()
    values = scales[0] * points[:, None] + shifts[0]
    log_slopes = log_scales.sum(0)
    for scale, shift in zip(scales[1:], shifts[1:], strict=True):
        values, log_slope = activation(values)
        values, log_slopes = scale * values + shift, log_slopes + log_slope
    return torch.einsum("q,qkd->kd", weights, values.square() / 2 - log_slopes)
