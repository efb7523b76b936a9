"""Baselines fitted in closed form: a Gaussian with full covariance, and independent histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lunet.base import Flow, NonFiniteError, standard_normal_log_prob
from lunet.triangular import full_precision
from lunet.whitening import CHUNK, whitening, whitening_of


class Gaussian(Flow, kind="gaussian"):
    r"""A Gaussian with full covariance, :math:`z = W (x - \mu)` with lower triangular :math:`W`.

    Cost: :math:`O(N D^2)` in both directions, :math:`O(N D^2 + D^3)` for the fit.

    Args:
        features: The number :math:`D` of features.
        ridge: A number that the fit adds to the covariance's diagonal, at least 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    starts: ClassVar[Mapping[str, int | None]] = {"fit": None}

    def __init__(self, features: int, ridge: float = 0.0) -> None:
        super().__init__(features)
        if not 0 <= ridge < math.inf:
            raise ValueError(f"ridge is {ridge}; it is finite and at least 0")
        self.ridge = ridge
        self.mean: Tensor
        self.whitening: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("whitening", torch.eye(features))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"features": self.features, "ridge": self.ridge}

    def free_parameters(self) -> int:
        """The number of values in mean and covariance."""
        return self.features + self.features * (self.features + 1) // 2

    def check_invertible(self) -> None:
        """Raise `NonFiniteError` for a variance that is not above zero or a value that is not finite."""
        super().check_invertible()
        singular = (self.whitening.diagonal() <= 0).nonzero()
        if len(singular):
            raise NonFiniteError(f"whitening is singular: entry {int(singular[0])} of its diagonal is not above zero")

    def fit_(self, x: Tensor) -> Self:
        r"""Set mean and covariance to those of a sample.

        Args:
            x: The sample, with shape :math:`(N, D)`.

        Raises:
            ValueError: If a value is not finite, or the covariance is singular.
        """
        self._check(x, "x")
        mean, factor = whitening(x, self.ridge)
        self.mean.copy_(mean)
        self.whitening.copy_(factor)
        return self

    def set_(self, mean: Tensor, covariance: Tensor) -> Self:
        r"""Set the mean, with shape :math:`(D,)`, and the covariance, with shape :math:`(D, D)`, without the ridge.

        Raises:
            ValueError: If the covariance is singular.
        """
        factor = whitening_of(covariance)
        self.mean.copy_(mean)
        self.whitening.copy_(factor)
        return self

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            z = (x - self.mean) @ self.whitening.mT
        return z, self.whitening.diagonal().log().sum().expand(len(x))

    def _inverse(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.whitening, z.mT, upper=False).mT + self.mean


class Histogram(Flow, kind="histogram"):
    r"""An independent histogram for each feature's values between 0 and 1, as a flow :math:`z = \Phi^{-1}(F(x))`.

    :math:`F` is the piecewise linear distribution function over equal bins, :math:`\Phi` the standard normal one. The
    model is defined on values between 0 and 1, so it follows dequantisation without a logit. The map is computed in
    float64, as :math:`\Phi^{-1}` needs accurate tails.

    Cost: :math:`O(N D)` for the log-density, :math:`O(D (N + K))` for the map with :math:`K` bins.

    Args:
        features: The number :math:`D` of features.
        levels: The number of bins.
        pseudocount: A number that the fit adds to every count; above 0, so that the map is invertible.

    Raises:
        ValueError: If an argument is out of range.
    """

    starts: ClassVar[Mapping[str, int | None]] = {"fit": None}
    unit_interval: ClassVar[bool] = True

    def __init__(self, features: int, levels: int = 256, pseudocount: float = 1.0) -> None:
        super().__init__(features)
        if not 0 < pseudocount < math.inf:
            raise ValueError(f"pseudocount is {pseudocount}; it must be above 0, or unseen values would be impossible")
        if levels < 1:
            raise ValueError(f"levels is {levels}; a histogram needs at least 1")
        self.levels = levels
        self.pseudocount = pseudocount
        self.probability: Tensor
        self.register_buffer("probability", torch.full((features, levels), 1 / levels))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"features": self.features, "levels": self.levels, "pseudocount": self.pseudocount}

    def free_parameters(self) -> int:
        """One less than the number of bins for each feature, as the probabilities sum to 1."""
        return self.features * (self.levels - 1)

    def fit_(self, x: Tensor) -> Self:
        r"""Set the probabilities to the relative frequencies in a sample.

        Args:
            x: Values between 0 and 1, with shape :math:`(N, D)`.

        Raises:
            ValueError: If a value is not between 0 and 1.
        """
        self._check(x, "x")
        counts = torch.full((self.features, self.levels), self.pseudocount, dtype=torch.float64, device=x.device)
        for rows in x.split(CHUNK):
            bins = self._bins(rows).mT
            counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=counts.dtype))
        self.probability.copy_(counts / counts.sum(1, keepdim=True))
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        r"""The log-densities in nats, with shape :math:`(N,)`, of values between 0 and 1 with shape :math:`(N, D)`."""
        self._check(x, "x")
        probability = self.probability.gather(1, self._bins(x).mT).mT.double()
        return (probability * self.levels).log().sum(1).to(x.dtype)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bins = self._bins(x)
        probability, below, above = self._masses(bins)
        share = x.double() * self.levels - bins
        lower, upper = below + share * probability, above + (1 - share) * probability
        # Computed from the nearer tail, as 1 - F would lose its digits.
        z = torch.where(lower < upper, torch.special.ndtri(lower), -torch.special.ndtri(upper))
        log_density = (probability * self.levels).log().sum(1)
        return z.to(x.dtype), (log_density - standard_normal_log_prob(z)).to(x.dtype)

    def _inverse(self, z: Tensor) -> Tensor:
        latent = z.double()
        # torch.special.ndtr loses the digits of the lower tail; torch.erfc keeps them.
        lower, upper = 0.5 * torch.erfc(-latent / 2**0.5), 0.5 * torch.erfc(latent / 2**0.5)
        cumulative = self.probability.double().cumsum(1)
        bins = torch.searchsorted(cumulative, lower.mT.contiguous(), right=True).mT.clamp(max=self.levels - 1)
        probability, below, above = self._masses(bins)
        share = torch.where(latent < 0, (lower - below) / probability, 1 - (upper - above) / probability)
        return ((bins + share.clamp(0, 1)) / self.levels).to(z.dtype)

    def _masses(self, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each bin's probability and the probabilities below and above it, with the shape of ``bins``, in float64."""
        probability = self.probability.double()
        below = probability.cumsum(1) - probability
        above = probability.flip(1).cumsum(1).flip(1) - probability
        return tuple(table.gather(1, bins.mT).mT for table in (probability, below, above))  # type: ignore[return-value]

    def _bins(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError("x has values outside 0 to 1, where a histogram has no bins")
        return (x * self.levels).floor().long().clamp(max=self.levels - 1)
