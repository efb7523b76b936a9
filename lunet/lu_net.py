"""LU-Net: layers phi(L U x + b)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from lunet import triangular
from lunet.activation import Activation, LeakySoftplus
from lunet.base import Flow


class LULayer(nn.Module):
    r"""The layer :math:`\phi(L U x + b)`; without an activation, :math:`L U x + b`.

    It starts at the identity and is invertible as long as no diagonal entry of :math:`U` is zero. Training keeps clear
    of that by itself, as the likelihood falls to :math:`-\infty` there; `check_invertible` says whether it did.

    Cost: :math:`O(N D^2)` in both directions, :math:`O(D)` for the log-determinant of the linear part.

    Args:
        features: The number :math:`D` of features.
        activation: The elementwise :math:`\phi`, or ``None`` for the identity.
    """

    def __init__(self, features: int, activation: Activation | None = None) -> None:
        super().__init__()
        self.lu = nn.Parameter(torch.eye(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.activation = activation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, with shape :math:`(N, D)`, and the log-determinants, with shape :math:`(N,)`."""
        h = triangular.multiply(self.lu, x) + self.bias
        log_det = triangular.log_abs_det(self.lu)
        if self.activation is None:
            return h, log_det.expand(len(x))
        z, log_slope = self.activation(h)
        return z, log_det + log_slope.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, D)`."""
        h = z if self.activation is None else self.activation.inverse(z)
        return triangular.solve(self.lu, h - self.bias)


class LUNet(Flow):
    r"""LU-Net: :math:`M` layers :math:`\phi(L U x + b)`, the last without :math:`\phi`.

    Cost: :math:`O(M N D^2)` in both directions; :math:`M (D^2 + D)` parameters.

    Args:
        features: The number :math:`D` of features.
        layers: The number :math:`M` of LU layers.
        slope: The lower slope of the leaky softplus.

    Example:
        >>> flow = LUNet(features=2, layers=3)
        >>> z, log_det = flow(torch.tensor([[0.5, -1.0]]))
        >>> flow.inverse(z)
        tensor([[ 0.5000, -1.0000]], grad_fn=...)

    References:
        LU-Net: Invertible Neural Networks Based on Matrix Factorization (Chan, Penquitt and Gottschalk, 2023),
        https://arxiv.org/abs/2302.10524
    """

    def __init__(self, features: int, layers: int = 4, slope: float = 0.1) -> None:
        super().__init__(features)
        if layers < 1:
            raise ValueError(f"layers is {layers}; an LU-Net needs at least 1")
        self.slope = slope
        activations = [LeakySoftplus(slope) if index < layers - 1 else None for index in range(layers)]
        stack = nn.ModuleList(LULayer(features, activation) for activation in activations)
        self.layers = cast("Sequence[LULayer]", stack)

    def config(self) -> dict[str, Any]:
        """The arguments that make an LU-Net of this architecture again."""
        return {"features": self.features, "layers": len(self.layers), "slope": self.slope}

    def check_invertible(self) -> None:
        """Raise ``ValueError``, naming the layer, for a zero on a diagonal or a value that is not finite."""
        super().check_invertible()
        for index, layer in enumerate(self.layers):
            zeros = (layer.lu.diagonal() == 0).nonzero()
            if len(zeros):
                raise ValueError(f"layers.{index} is singular: entry {int(zeros[0])} of U's diagonal is zero")

    @torch.no_grad()
    def standardise_(self, x: Tensor, *, offset: float = 1.0) -> Self:
        r"""Start where each layer's argument of the activation has variance 1 and mean ``offset`` on a sample.

        Args:
            x: The sample, with shape :math:`(N, D)`, at least two rows.
            offset: How far the arguments of the activations are moved to the right, where the leaky softplus is nearly
                the identity. The last layer's output has mean 0.

        Raises:
            ValueError: If a feature is constant on the sample, or a value is not finite.
        """
        self._check(x, "x")
        self._standardise_from(0, x, offset)
        self.check_invertible()
        return self

    @torch.no_grad()
    def whiten_(self, x: Tensor, *, offset: float = 1.0) -> Self:
        r"""Start at the whitening map of a sample, towards the likelihood of a full-covariance Gaussian.

        The first layer's :math:`L U` becomes :math:`\Sigma^{-1/2}`, which keeps each feature near its own place; as it
        is positive definite, its Cholesky factor gives both triangles. The other layers are set as in `standardise_`.

        Cost: :math:`O(N D^2 + D^3)`, once, in float64.

        Args:
            x: The sample, with shape :math:`(N, D)`, more rows than features.
            offset: See `standardise_`. At 3 the start is within 0.04 nats a feature of the Gaussian, at 1 within 0.4;
                training from there gains more, as the activations bend where the data are.

        Raises:
            ValueError: If a value is not finite, or the sample's covariance is singular.
        """
        self._check(x, "x")
        mean, factor = whitening(x)
        eigenvalues, vectors = torch.linalg.eigh(factor.mT @ factor)
        root = (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.mT
        cholesky, failure = torch.linalg.cholesky_ex(root)
        if failure:
            raise ValueError(f"the covariance of {len(x)} rows is too near to singular to whiten; standardise instead")
        diagonal = cholesky.diagonal()
        first = self.layers[0]
        first.lu.copy_(triangular.pack(cholesky / diagonal, diagonal[:, None] * cholesky.mT))
        first.bias.copy_(-root @ mean)
        if first.activation is not None:
            first.bias.add_(offset)
        self._standardise_from(1, first(x)[0], offset)
        self.check_invertible()
        return self

    def _standardise_from(self, start: int, h: Tensor, offset: float) -> None:
        """Set the layers from ``start`` on, whose input on the sample is ``h``."""
        for layer in self.layers[start:]:
            std, mean = torch.std_mean(h, dim=0)
            layer.lu.copy_(std.reciprocal().diag())
            layer.bias.copy_(-mean / std)
            if layer.activation is not None:
                layer.bias.add_(offset)
            h, _ = layer(h)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for layer in self.layers:
            x, layer_log_det = layer(x)
            log_det = log_det + layer_log_det
        return x, log_det

    def _inverse(self, z: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            z = layer.inverse(z)
        return z


def whitening(x: Tensor, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""The mean of a sample and the lower triangular :math:`W` with :math:`W^T W = (\Sigma + \text{ridge})^{-1}`.

    Cost: :math:`O(N D^2 + D^3)`, in float64.

    Args:
        x: The sample, with shape :math:`(N, D)`.
        ridge: What is added to the diagonal of the covariance :math:`\Sigma`.

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
    for rows in x.split(4096):
        centred = rows.double() - mean
        covariance += centred.mT @ centred
    covariance = covariance / len(x) + ridge * identity
    cholesky, failure = torch.linalg.cholesky_ex(covariance)
    if failure:
        raise ValueError(f"the covariance of {len(x)} rows is singular in feature {int(failure) - 1}; add a ridge")
    return mean, torch.linalg.solve_triangular(cholesky, identity, upper=False)
