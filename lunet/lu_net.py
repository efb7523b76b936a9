"""LU-Net: layers phi(L U x + b)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from lunet import folding, marginals, reversible, triangular
from lunet.activation import Activation, LeakySoftplus, activation_from, in_cache
from lunet.base import Flow, LayerDiagnostics, NonFiniteError
from lunet.folding import Fold
from lunet.learned_monotone import LearnedMonotone

# Rows of a sample that pass through an activation at once, which bounds the memory of a start.
CHUNK = 4096


class LULayer(nn.Module):
    r"""The layer :math:`\phi(L U x + b)`; without an activation, :math:`L U x + b`.

    It starts at the identity and is invertible as long as no diagonal entry of :math:`U` is zero. Training keeps clear
    of that by itself, as the likelihood falls to :math:`-\infty` there; `check_invertible` says whether it did.

    Cost: :math:`O(N D^2)` in both directions, :math:`O(D)` for the log-determinant of the linear part. In eval mode,
    without gradients and for batches of 64 rows or more on a CPU, :math:`L U` and its inverse (unless that would lose
    digits) are folded into one matrix each, once so many rows have passed that it is worth it, and made anew when a
    weight has changed.

    Args:
        features: The number :math:`D` of features.
        activation: The elementwise :math:`\phi`, or ``None`` for the identity.
    """

    def __init__(self, features: int, activation: Activation | None = None) -> None:
        super().__init__()
        self.lu = nn.Parameter(torch.eye(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.activation = activation
        self._product, self._inverse = Fold(folding.product, worth=1), Fold(folding.inverse, worth=4)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - as torch has it
        """Choose train or eval mode; train mode forgets what evaluation has made of the weights."""
        self._product.drop()
        self._inverse.drop()
        return super().train(mode)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, with shape :math:`(N, D)`, and the log-determinants, with shape :math:`(N,)`."""
        matrix = None if self.training else self._product.of(self.lu, x)
        if matrix is None:
            product, log_det = triangular.transform(self.lu, x)
            h = product + self.bias
        else:
            h, log_det = nn.functional.linear(x, matrix, self.bias), triangular.log_abs_det(self.lu)
        if self.activation is None:
            return h, log_det.expand(len(x))
        if matrix is None:
            z, log_slope = self.activation(h)
            return z, log_det + log_slope.sum(1)
        z, log_slopes = self.activation.evaluate_(h)
        return z, log_det + log_slopes

    def inverse(self, z: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, D)`."""
        matrix = None if self.training else self._inverse.of(self.lu, z)
        if matrix is not None:
            h = z if self.activation is None else torch.cat([self.activation.inverse(rows) for rows in in_cache(z)])
            return nn.functional.linear(h - self.bias, matrix)
        h = z if self.activation is None else self.activation.inverse(z)
        return triangular.solve(self.lu, h - self.bias)


class LUNet(Flow):
    r"""LU-Net: :math:`M` layers :math:`\phi(L U x + b)`, the last without :math:`\phi`.

    Cost: :math:`O(M N D^2)` in both directions; :math:`M (D^2 + D)` parameters and those of the activations.

    Args:
        features: The number :math:`D` of features.
        layers: The number :math:`M` of LU layers.
        slope: The lower slope of the leaky softplus.
        activation: What :math:`\phi` is instead, or its description; each layer gets a copy of its own.
        leading: An activation before the first layer, or its description; none if ``None``.

    Attributes:
        reversible: Whether gradients do without stored activations, so that the memory of a training step does not grow
            with the number of layers; see `lunet.reversible.through` for the price. False at first.

    Example:
        >>> flow = LUNet(features=2, layers=3)
        >>> z, log_det = flow(torch.tensor([[0.5, -1.0]]))
        >>> flow.inverse(z)
        tensor([[ 0.5000, -1.0000]], grad_fn=...)

    References:
        LU-Net: Invertible Neural Networks Based on Matrix Factorization (Chan, Penquitt and Gottschalk, 2023),
        https://arxiv.org/abs/2302.10524
    """

    def __init__(
        self,
        features: int,
        layers: int = 4,
        slope: float = 0.1,
        *,
        activation: Activation | Mapping[str, Any] | None = None,
        leading: Activation | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(features)
        if layers < 1:
            raise ValueError(f"layers is {layers}; an LU-Net needs at least 1")
        self._activation = _own(LeakySoftplus(slope) if activation is None else activation).describe()
        self.leading = None if leading is None else _own(leading)
        activations = [_own(activation or LeakySoftplus(slope)) for _ in range(layers - 1)]
        stack = nn.ModuleList(LULayer(features, activation) for activation in (*activations, None))
        self.layers = cast("Sequence[LULayer]", stack)
        self.reversible = False

    def config(self) -> dict[str, Any]:
        """The arguments that make an LU-Net of this architecture again."""
        leading = None if self.leading is None else self.leading.describe()
        return {
            "features": self.features, "layers": len(self.layers), "activation": self._activation, "leading": leading
        }  # fmt: skip

    def check_invertible(self) -> None:
        """Raise `NonFiniteError`, naming the layer, for a zero on a diagonal or a value that is not finite."""
        super().check_invertible()
        for index, layer in enumerate(self.layers):
            zeros = (layer.lu.diagonal() == 0).nonzero()
            if len(zeros):
                raise NonFiniteError(f"layers.{index} is singular: entry {int(zeros[0])} of U's diagonal is zero")

    @torch.no_grad()
    def uniform_(self, generator: torch.Generator | None = None) -> Self:
        r"""Start as the released code does: :math:`L`, :math:`U` and :math:`b` uniform within :math:`\pm 1 / \sqrt{D}`.

        The diagonal of :math:`U` is then near zero, and the first log-determinants are far from any that fits data.

        Args:
            generator: Where the values come from, on the flow's device.
        """
        bound = self.features**-0.5
        for layer in self.layers:
            layer.lu.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
        return self

    @torch.no_grad()
    def standardise_(self, x: Tensor, *, offset: float = 1.0) -> Self:
        r"""Start where each layer's output before its activation has variance 1 on a sample.

        Args:
            x: The sample, with shape :math:`(N, D)`, at least two rows.
            offset: The mean of that output before a leaky softplus, which is nearly the identity far to the right. It
                is 0 before other activations and in the last layer. A leading `LearnedMonotone` is fitted first.

        Raises:
            ValueError: If a feature is constant on the sample, or a value is not finite.
        """
        with self._all_or_nothing():
            self._standardise_from(0, self._start_leading(x), offset)
            self.check_invertible()
        return self

    @torch.no_grad()
    def whiten_(self, x: Tensor, *, offset: float = 1.0) -> Self:
        r"""Start at the whitening map of a sample, towards the likelihood of a full-covariance Gaussian.

        The first layer's :math:`L U` becomes :math:`\Sigma^{-1/2}`, which keeps each feature near its own place; as it
        is positive definite, its Cholesky factor gives both triangles. The other layers are set as in `standardise_`.
        A leading `LearnedMonotone` is fitted first, and the Gaussian is that of its values.

        Cost: :math:`O(N D^2 + D^3)`, once, in float64.

        Args:
            x: The sample, with shape :math:`(N, D)`, more rows than features.
            offset: See `standardise_`. At 3 the start is within 0.04 nats a feature of the Gaussian, at 1 within 0.4;
                training from there gains more, as the activations bend where the data are.

        Raises:
            ValueError: If a value is not finite, or the sample's covariance is singular.
        """
        first = self.layers[0]
        with self._all_or_nothing():
            h = self._start_leading(x)
            _whiten_(first, h)
            h = self._finish_start(first, h, offset)
            self._standardise_from(1, h, offset)
            self.check_invertible()
        return self

    @torch.no_grad()
    def copula_(self, x: Tensor, generator: torch.Generator | None = None, *, ridge: float = 0.03) -> Self:
        r"""Start at a Gaussian copula of a sample: each feature bent to a standard normal, then all whitened together.

        All layers but the last become diagonal, a chain of leaky softpluses for each feature that is fitted to its
        marginal; the last one whitens what comes out. This is far above a Gaussian where marginals have several modes.

        Cost: `lunet.marginals.fit_marginals`, then :math:`O(N D^2 + D^3)` in float64.

        Args:
            x: The sample, with shape :math:`(N, D)`.
            generator: Where the random starts of the fits come from, on the sample's device.
            ridge: What is added to the variances, which are near 1, before whitening: more helps where rows are few.

        Raises:
            ValueError: If an activation is not a leaky softplus, there is only one layer, a feature is constant, or a
                value is not finite.
        """
        activations = [layer.activation for layer in self.layers[:-1]]
        template = activations[0] if activations else None
        if self.leading is not None or not isinstance(template, LeakySoftplus):
            raise ValueError("copula_ bends marginals by leaky softpluses between two layers or more; use whiten_")
        self._check(x, "x")
        scales, shifts = marginals.fit_marginals(x, template, len(activations), generator)
        *bent, last = self.layers
        with self._all_or_nothing():
            for layer, scale, shift in zip(bent, scales, shifts, strict=False):
                layer.lu.copy_(scale.diag())
                layer.bias.copy_(shift)
                x = self._finish_start(layer, x, offset=0.0)
            _whiten_(last, x, scales[-1], shifts[-1], ridge)
            self.check_invertible()
        return self

    def _start_leading(self, x: Tensor) -> Tensor:
        """What the first layer is given of a sample, once the leading activation has been fitted to it."""
        self._check(x, "x")
        if self.leading is None:
            return x
        if isinstance(self.leading, LearnedMonotone):
            self.leading.fit_(x)
        return torch.cat([self.leading(rows)[0] for rows in x.split(CHUNK)])

    def _standardise_from(self, start: int, h: Tensor, offset: float) -> None:
        """Set the layers from ``start`` on, whose input on the sample is ``h``."""
        for layer in self.layers[start:]:
            std, mean = torch.std_mean(h, dim=0)
            layer.lu.copy_(std.reciprocal().diag())
            layer.bias.copy_(-mean / std)
            h = self._finish_start(layer, h, offset)

    def _finish_start(self, layer: LULayer, h: Tensor, offset: float) -> Tensor:
        """The output on the sample of a layer whose linear part has been set; its bias moves by ``offset``."""
        if isinstance(layer.activation, LeakySoftplus):
            layer.bias.add_(offset)
        return torch.cat([layer(rows)[0] for rows in h.split(CHUNK)])

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        if self.leading is not None:
            x, log_slope = self.leading(x)
            log_det = log_slope.sum(1)
        if self.reversible and torch.is_grad_enabled():
            x, layers_log_det = reversible.through(self.layers, x)
            return x, log_det + layers_log_det
        for layer in self.layers:
            x, layer_log_det = layer(x)
            log_det = log_det + layer_log_det
        return x, log_det

    def _layer_diagnostics(self) -> list[LayerDiagnostics]:
        return [
            LayerDiagnostics(f"layers.{index}", float(layer.lu.diagonal().abs().amin()), triangular.condition(layer.lu))
            for index, layer in enumerate(self.layers)
        ]

    def _inverse(self, z: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            z = layer.inverse(z)
        return z if self.leading is None else self.leading.inverse(z)


def _own(activation: Activation | Mapping[str, Any]) -> Activation:
    """An activation of one's own: a copy, or a new one by its description."""
    return copy.deepcopy(activation) if isinstance(activation, Activation) else activation_from(activation)


def _whiten_(
    layer: LULayer, x: Tensor, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0, ridge: float = 0.0
) -> None:
    """Set a layer's linear part to the symmetric whitening map of ``scale * x + shift``."""
    mean, factor = whitening(scale * x + shift, ridge)
    eigenvalues, vectors = torch.linalg.eigh(factor.mT @ factor)
    root = (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.mT
    cholesky, failure = torch.linalg.cholesky_ex(root)
    if failure:
        raise ValueError(f"the covariance of {len(x)} rows is too near to singular to whiten; standardise instead")
    diagonal = cholesky.diagonal()
    layer.lu.copy_(triangular.pack(cholesky / diagonal, diagonal[:, None] * cholesky.mT * scale))
    layer.bias.copy_(root @ (shift - mean))


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
    for rows in x.split(CHUNK):
        centred = rows.double() - mean
        covariance += centred.mT @ centred
    covariance = covariance / len(x) + ridge * identity
    cholesky, failure = torch.linalg.cholesky_ex(covariance)
    if failure:
        raise ValueError(f"the covariance of {len(x)} rows is singular in feature {int(failure) - 1}; add a ridge")
    return mean, torch.linalg.solve_triangular(cholesky, identity, upper=False)
