"""The whitening map of a sample."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of a sample that are processed at once, which bounds the memory.
CHUNK = 4096


def covariance_of(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The mean of a sample, with shape :math:`(D,)`, and its covariance, with shape :math:`(D, D)`, both in float64.

    Cost: :math:`O(N D^2)`.

    Args:
        x: The sample, with shape :math:`(N, D)`.

    Raises:
        ValueError: If a value is not finite.
    """
    if not x.isfinite().all():
        raise ValueError("x has values that are not finite; they have no mean and no covariance")
    mean = x.mean(0, dtype=torch.float64)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=x.device)
    for rows in x.split(CHUNK):
        centred = rows.double() - mean
        covariance += centred.mT @ centred
    return mean, covariance / len(x)


def whitening_of(covariance: Tensor, name: str = "the covariance") -> Tensor:
    r"""The lower triangular :math:`W` with :math:`W^T W = \Sigma^{-1}`, for a covariance of shape :math:`(D, D)`.

    Cost: :math:`O(D^3)`.

    Args:
        covariance: The covariance :math:`\Sigma`, with shape :math:`(D, D)`.
        name: What to call it in an error.

    Raises:
        ValueError: If the covariance is singular.
    """
    cholesky, failure = torch.linalg.cholesky_ex(covariance)
    if failure:
        raise ValueError(f"{name} is singular in feature {int(failure) - 1}; add a ridge")
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.solve_triangular(cholesky, identity, upper=False)


def whitening(x: Tensor, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""The mean of a sample and the lower triangular :math:`W` with :math:`W^T W = (\Sigma + r I)^{-1}`.

    Cost: :math:`O(N D^2 + D^3)`, in float64.

    Args:
        x: The sample, with shape :math:`(N, D)`.
        ridge: The number :math:`r` that is added to the diagonal of the covariance :math:`\Sigma`.

    Returns:
        The mean, with shape :math:`(D,)`, and :math:`W`, with shape :math:`(D, D)`, both float64.

    Raises:
        ValueError: If a value is not finite, or the covariance is singular.
    """
    mean, covariance = covariance_of(x)
    covariance.diagonal().add_(ridge)
    return mean, whitening_of(covariance, f"the covariance of {len(x)} rows")
