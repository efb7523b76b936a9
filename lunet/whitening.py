"""The whitening map of a sample."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of a sample that are processed at once, which bounds the memory.
CHUNK = 4096


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
    if not x.isfinite().all():
        raise ValueError("x has values that are not finite; they have no mean and no covariance")
    mean = x.mean(0, dtype=torch.float64)
    identity = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    covariance = torch.zeros_like(identity)
    for rows in x.split(CHUNK):
        centred = rows.double() - mean
        covariance += centred.mT @ centred
    covariance = covariance / len(x) + ridge * identity
    cholesky, failure = torch.linalg.cholesky_ex(covariance)
    if failure:
        raise ValueError(f"the covariance of {len(x)} rows is singular in feature {int(failure) - 1}; add a ridge")
    return mean, torch.linalg.solve_triangular(cholesky, identity, upper=False)
