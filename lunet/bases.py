"""Bases in the place of the standard normal one, fitted to the latents of a trained flow in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lunet.controls import Gaussian
from lunet.whitening import covariance_of


class Base(Protocol):
    """A distribution over latents; a `Flow` on them is one, with its log-density and its samples."""

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype in which it works."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        r"""The log-densities in nats, with shape :math:`(N,)`, of latents with shape :math:`(N, D)`."""
        ...

    def sample(self, n: int, generator: torch.Generator | None = None, *, temperature: float = 1.0) -> Tensor:
        r"""``n`` latents, with shape :math:`(n, D)`."""
        ...


class ClassGaussians(nn.Module):
    r"""A mixture of one Gaussian for each class, :math:`p(z) = \sum_k w_k \, N(z; \mu_k, \Sigma_k)`.

    The weights are the shares of the classes. Each covariance is shrunk towards the pooled one within classes,
    :math:`\Sigma_k = (1 - s) S_k + s \sum_j w_j S_j`. A density needs no label; a class can be asked for its samples.

    Cost: :math:`O(N K D^2)` for the log-densities of :math:`N` latents under :math:`K` classes, :math:`O(N D^2)` for
    samples.

    Args:
        features: The number :math:`D` of features.
        classes: The number :math:`K` of classes.

    Raises:
        ValueError: If there is no class.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes is {classes}; at least 1 is needed")
        self.gaussians = nn.ModuleList(Gaussian(features) for _ in range(classes))
        self.log_weights: Tensor
        self.register_buffer("log_weights", torch.zeros(classes).log_softmax(0))

    def __getitem__(self, label: int) -> Gaussian:
        """The Gaussian of a class."""
        gaussian = self.gaussians[label]
        assert isinstance(gaussian, Gaussian)
        return gaussian

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype in which it works."""
        return self.log_weights.dtype

    @torch.no_grad()
    def fit_(self, z: Tensor, labels: Tensor, heldout: Tensor, shrinkages: Sequence[float]) -> float:
        r"""Fit all classes, with that shrinkage which gives held-out latents the highest mean log-density.

        Cost: :math:`O(N D^2)` for the moments; for each shrinkage :math:`O(K D^3)`, and the densities of the held-out
        latents.

        Args:
            z: Latents, with shape :math:`(N, D)`.
            labels: Their classes, with shape :math:`(N,)`, each from 0 to :math:`K - 1` and each class present.
            heldout: Latents of other images, with shape :math:`(M, D)`; their classes are not used.
            shrinkages: The shrinkages :math:`s` to choose from, each from 0 to 1.

        Returns:
            The chosen shrinkage.

        Raises:
            ValueError: If there is no shrinkage, a class has no latents, a value is not finite, or a covariance is
                singular with each shrinkage.
        """
        if not shrinkages:
            raise ValueError("shrinkages is empty; at least one is needed")
        if not heldout.isfinite().all():
            raise ValueError("heldout has values that are not finite, which say nothing of a shrinkage")
        classes = len(self.gaussians)
        counts = labels.long().bincount(minlength=classes)
        if len(counts) > classes or not counts.all():
            raise ValueError(f"labels has {counts.tolist()} latents by class; each of {classes} needs some")
        self.log_weights.copy_((counts / counts.sum()).log())
        means, covariances = zip(*(covariance_of(z[labels == label]) for label in range(len(counts))), strict=True)
        pooled = sum(count * covariance for count, covariance in zip(counts, covariances, strict=True)) / len(z)
        scores = dict[float, float]()

        def shrink(shrinkage: float) -> None:
            for label, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
                self[label].set_(mean, (1 - shrinkage) * covariance + shrinkage * pooled)

        for shrinkage in shrinkages:
            try:
                shrink(shrinkage)
            except ValueError as error:
                failure = error
            else:
                scores[shrinkage] = float(self.log_prob(heldout.to(self.dtype)).double().mean())
        if not scores:
            raise failure
        best = max(scores, key=lambda shrinkage: scores[shrinkage])
        shrink(best)
        return best

    def log_prob(self, x: Tensor) -> Tensor:
        r"""The log-densities in nats, with shape :math:`(N,)`, of latents with shape :math:`(N, D)`."""
        by_class = torch.stack([self[label].log_prob(x) for label in range(len(self.gaussians))], dim=1)
        return (by_class + self.log_weights).logsumexp(1)

    def sample(self, n: int, generator: torch.Generator | None = None, *, temperature: float = 1.0) -> Tensor:
        r"""``n`` latents, with shape :math:`(n, D)`, in the order of their classes, which are drawn first."""
        device = self.log_weights.device if generator is None else generator.device
        uniform = torch.rand(n, generator=generator, device=device, dtype=self.dtype)
        bounds = self.log_weights.exp().cumsum(0)[:-1].to(device)
        counts = torch.bucketize(uniform, bounds, right=True).bincount(minlength=len(self.gaussians))
        drawn = [
            self[label].sample(int(count), generator, temperature=temperature) for label, count in enumerate(counts)
        ]
        return torch.cat(drawn)
