"""The marginals of a Gaussian copula: a chain of activations maps each feature of a sample to a standard normal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lunet.activation import LeakySoftplus

# The number of points that represent the values of one feature; rows, points and total weight of the pool, which
# represents the values of all features together.
POINTS, POOL_ROWS, POOL_POINTS, POOL_WEIGHT = 128, 256, 32, 0.005
# Random candidates for each feature's chain, all of which are trained for the first steps, and the number of the best
# that are trained further.
CANDIDATES, FINALISTS = 16, 2
FIRST_STEPS, STEPS = 60, 300
LEARNING_RATE = 0.15


@torch.no_grad()
def fit_marginals(
    x: Tensor, activation: LeakySoftplus, bends: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""Scales and shifts that map each feature of a sample to a standard normal.

    Feature :math:`d` becomes :math:`a_B \phi(\dots \phi(a_0 x_d + b_0) \dots) + b_B`. Adam maximises the likelihood
    from several random initial values, and the best result for each feature is returned. The values of all features
    together have a weight of 0.005 in the likelihood, so that the density stays positive at values that a feature does
    not take in the sample.

    Cost: :math:`O(D N \log N)` to sort the sample, then some seconds on a CPU for 784 features, whatever :math:`N`.

    Args:
        x: The sample, with shape :math:`(N, D)`.
        activation: The elementwise :math:`\phi`.
        bends: The number :math:`B` of activations.
        generator: The random generator of the initial values, on the sample's device.

    Returns:
        The scales and the shifts, each with shape :math:`(B + 1, D)`.

    Raises:
        ValueError: If a feature is constant on the sample, or a value is not finite.
    """
    std, mean = torch.std_mean(x, dim=0)
    if not bool((std.isfinite() & (std > 0)).all()):
        raise ValueError("a marginal is fitted to features with two different values or more, all of them finite")
    points, weights = representatives((x - mean) / std)
    signs, log_scales, shifts = _random_candidates(points, weights, activation, bends, generator)
    for steps, survivors in ((FIRST_STEPS, FINALISTS), (STEPS, 1)):
        losses = _fit_(points, weights, activation, signs, log_scales, shifts, steps)
        best = losses.nan_to_num(math.inf).argsort(0)[:survivors].expand(bends + 1, -1, -1)
        signs, log_scales, shifts = (values.gather(1, best) for values in (signs, log_scales, shifts))
    scales, shifts = (signs * log_scales.exp())[:, 0], shifts[:, 0]
    shifts[0] -= scales[0] * mean / std
    scales[0] /= std
    return scales, shifts


def representatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """Points with shape (Q, D), dense in the tails and with both extreme values, and their weights, with shape (Q,)."""
    rows = len(x)
    end = math.log(2 * rows)
    cuts = (rows * torch.linspace(-end, end, POINTS + 1, dtype=torch.float64).sigmoid()).round().long().unique()
    ordered = x.mT.contiguous().sort(1).values.mT
    pool = x[:POOL_ROWS].flatten().sort().values
    medians = ((cuts[1:] + cuts[:-1] - 1) // 2).to(x.device)
    middles = ((torch.arange(POOL_POINTS) + 0.5) / POOL_POINTS * len(pool)).long().to(x.device)
    points = torch.cat([ordered[medians], pool[middles, None].expand(-1, x.shape[1])])
    pool_weights = torch.full((POOL_POINTS,), POOL_WEIGHT / POOL_POINTS, dtype=torch.float64)
    weights = torch.cat([(1 - POOL_WEIGHT) / rows * cuts.diff(), pool_weights])
    return points, weights.to(x)


def _random_candidates(
    points: Tensor, weights: Tensor, activation: LeakySoftplus, bends: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Signs, logarithms of scales, and shifts, each with shape (B + 1, candidates, D); each bend is at a point."""
    features = points.shape[1]
    sharpness = 2 + 4 * torch.rand(bends, CANDIDATES, features, generator=generator, device=points.device)
    indices = torch.multinomial(weights, bends * CANDIDATES * features, replacement=True, generator=generator)
    # All combinations of the signs of three bends, which decide the way each bends; further bends repeat them.
    bits = torch.arange(CANDIDATES)[:, None] >> (torch.arange(bends) % 3)[:, None, None] & 1
    signs = (1 - 2 * bits).to(points).expand(-1, -1, features)
    values, log_scales, shifts = points[:, None].expand(-1, CANDIDATES, -1), [], []
    for sign, stretch, index in zip(signs, sharpness.to(points), indices.view_as(sharpness), strict=True):
        scale = sign * stretch / _moments(values, weights)[1]
        log_scales.append(scale.abs().log())
        shifts.append(-scale * values.gather(0, index[None])[0])
        values, _ = activation(scale * values + shifts[-1])
    mean, std = _moments(values, weights)
    return (
        torch.cat([signs, torch.ones_like(signs[:1])]),
        torch.stack([*log_scales, -std.log()]),
        torch.stack([*shifts, -mean / std]),
    )


def _moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean and standard deviation over the first dimension."""
    mean = torch.einsum("q,qkd->kd", weights, values)
    return mean, torch.einsum("q,qkd->kd", weights, (values - mean).square()).sqrt()


@torch.enable_grad()
def _fit_(
    points: Tensor,
    weights: Tensor,
    activation: LeakySoftplus,
    signs: Tensor,
    log_scales: Tensor,
    shifts: Tensor,
    steps: int,
) -> Tensor:
    """Fit the chains in place by Adam; the negative log-likelihood of each, with shape (candidates, D)."""
    parameters = [log_scales.requires_grad_(), shifts.requires_grad_()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
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
    """The negative log-likelihood of each chain up to a constant, with shape (candidates, D)."""
    scales = signs * log_scales.exp()
    values = scales[0] * points[:, None] + shifts[0]
    log_slopes = log_scales.sum(0)
    for scale, shift in zip(scales[1:], shifts[1:], strict=True):
        values, log_slope = activation(values)
        values, log_slopes = scale * values + shift, log_slopes + log_slope
    return torch.einsum("q,qkd->kd", weights, values.square() / 2 - log_slopes)
