"""LU-Net: a sequence of layers phi(L U x + b)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from lunet import reversible, starts, triangular
from lunet.activation import Activation, LeakySoftplus, activation_from
from lunet.base import Flow, LayerDiagnostics, NonFiniteError
from lunet.learned_monotone import LearnedMonotone
from lunet.lu_layer import LULayer

# Rows of data for an initialisation; enough for the covariance of 784 features.
START = 20_000


class LUNet(Flow, kind="lunet"):
    r"""LU-Net: :math:`M` layers :math:`\phi(L U x + b)`, the last without :math:`\phi`.

    Cost: :math:`O(M N D^2)` in both directions; :math:`M (D^2 + D)` parameters and those of the activations.

    Args:
        features: The number :math:`D` of features.
        layers: The number :math:`M` of LU layers.
        slope: The lower slope of the leaky softplus, 0.1 by default; not together with ``activation``.
        activation: Another :math:`\phi`, or its description; each layer gets a copy.
        leading: An activation before the first layer, or its description; none if ``None``.

    Attributes:
        reversible: Whether gradients are computed without stored activations, so that the memory of a training step
            does not grow with the number of layers; see `lunet.reversible.through` for the cost. False by default.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> flow = LUNet(features=2, layers=3)
        >>> z, log_det = flow(torch.tensor([[0.5, -1.0]]))
        >>> flow.inverse(z)
        tensor([[ 0.5000, -1.0000]], grad_fn=...)

    References:
        LU-Net: Invertible Neural Networks Based on Matrix Factorization (Chan, Penquitt and Gottschalk, 2023),
        https://arxiv.org/abs/2302.10524
    """

    starts: ClassVar[Mapping[str, int | None]] = {"standardise": START, "whiten": START, "copula": START, "uniform": 0}

    def __init__(
        self,
        features: int,
        layers: int = 4,
        slope: float | None = None,
        *,
        activation: Activation | Mapping[str, Any] | None = None,
        leading: Activation | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(features)
        if layers < 1:
            raise ValueError(f"layers is {layers}; an LU-Net needs at least 1")
        if None not in (slope, activation):
            raise ValueError(
                "slope and activation are both given; the slope is that of the leaky softplus, so give one of the two"
            )
        template = LeakySoftplus(0.1 if slope is None else slope) if activation is None else _copy(activation)
        self._activation = template.describe()
        self.leading = None if leading is None else _copy(leading)
        activations = [_copy(template) for _ in range(layers - 1)]
        stack = nn.ModuleList(LULayer(features, activation) for activation in (*activations, None))
        self.layers = cast("Sequence[LULayer]", stack)
        self.reversible = False

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        leading = None if self.leading is None else self.leading.describe()
        sizes = {"features": self.features, "layers": len(self.layers)}
        return {**sizes, "slope": None, "activation": self._activation, "leading": leading}

    def check_invertible(self) -> None:
        """Raise `NonFiniteError`, which names the layer, for a zero on a diagonal or a value that is not finite."""
        super().check_invertible()
        zeros = torch.stack([layer.lu.diagonal() == 0 for layer in self.layers]).nonzero().tolist()
        if zeros:
            raise NonFiniteError(f"layers.{zeros[0][0]} is singular: entry {zeros[0][1]} of U's diagonal is zero")

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

    def _inverse(self, z: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            z = layer.inverse(z)
        return z if self.leading is None else self.leading.inverse(z)

    def _layer_diagnostics(self) -> list[LayerDiagnostics]:
        matrices = [layer.lu for layer in self.layers]
        pairs = torch.stack(
            [torch.stack([lu.diagonal().abs().amin().double(), triangular.condition(lu)]) for lu in matrices]
        )
        return [LayerDiagnostics(f"layers.{index}", *pair) for index, pair in enumerate(pairs.tolist())]

    def uniform_(self, generator: torch.Generator | None = None) -> Self:
        r"""Initialise as the released code does: :math:`L`, :math:`U`, :math:`b` uniform within :math:`\pm 1/\sqrt{D}`.

        The diagonal of :math:`U` is then close to zero, and the first log-determinants are far from any that fits data.

        Args:
            generator: The random generator, on the flow's device.
        """
        starts.uniform_(self.layers, generator)
        return self

    def standardise_(self, x: Tensor, *, offset: float = 1.0) -> Self:
        r"""Initialise so that each layer's output before its activation has variance 1 on a sample.

        A leading `LearnedMonotone` is fitted first.

        Cost: :math:`O(M N D^2)`, one pass of the sample.

        Args:
            x: The sample, with shape :math:`(N, D)`, at least two rows.
            offset: The mean of that output before a leaky softplus, which is nearly the identity far to the right. The
                mean is 0 before other activations and in the last layer.

        Raises:
            ValueError: If a feature is constant on the sample, or a value is not finite; the flow is then unchanged.
        """
        with self._initialisation_from(x):
            starts.standardise_(self.layers, self.leading, x, offset)
        return self

    def whiten_(self, x: Tensor, *, offset: float = 1.0) -> Self:
        r"""Initialise to the whitening map of a sample, close to the likelihood of a full-covariance Gaussian.

        In the first layer, :math:`L U` becomes :math:`\Sigma^{-1/2}`, which keeps each feature close to its position.
        As it is positive definite, its Cholesky factor gives both triangles. The other layers are initialised as in
        `standardise_`. A leading `LearnedMonotone` is fitted first, and :math:`\Sigma` is the covariance of its values.

        Cost: :math:`O(M N D^2 + D^3)`, the covariance and the factor in float64.

        Args:
            x: The sample, with shape :math:`(N, D)`, more rows than features.
            offset: See `standardise_`. At 3 the likelihood is within 0.04 nats per feature of the Gaussian's, at 1
                within 0.4; training improves more from 1, as the activations bend where the data are.

        Raises:
            ValueError: If a value is not finite, or the sample's covariance is singular; the flow is then unchanged.
        """
        with self._initialisation_from(x):
            starts.whiten_(self.layers, self.leading, x, offset)
        return self

    def copula_(self, x: Tensor, generator: torch.Generator | None = None, *, ridge: float = 0.03) -> Self:
        r"""Initialise to a Gaussian copula of a sample: map each feature to a standard normal, then whiten.

        All layers but the last become diagonal: for each feature a chain of leaky softpluses that is fitted to its
        marginal. The last layer whitens their output. The likelihood is far above a Gaussian's if the marginals have
        several modes.

        Cost: that of `lunet.marginals.fit_marginals`, then :math:`O(N D^2 + D^3)` in float64.

        Args:
            x: The sample, with shape :math:`(N, D)`.
            generator: The random generator of the fits' initial values, on the sample's device.
            ridge: A number added to the variances, which are close to 1, before whitening; a larger one helps if there
                are few rows.

        Raises:
            ValueError: If an activation is not a leaky softplus, there is only one layer, a feature is constant, or a
                value is not finite; the flow is then unchanged.
        """
        with self._initialisation_from(x):
            starts.copula_(self.layers, self.leading, x, generator, ridge)
        return self

    @contextmanager
    def _initialisation_from(self, x: Tensor) -> Iterator[None]:
        """Check the sample, then the parameters that the body has set; restore the old ones on an error."""
        self._check(x, "x")
        with self._restore_on_error():
            yield
            self.check_invertible()


class LearnedLUNet(LUNet, kind="lunet_learned"):
    r"""LU-Net with learned activations: a `LearnedMonotone` as :math:`\phi`, and one before the first layer.

    Cost: that of `LUNet` and of its activations.

    Args:
        features: The number :math:`D` of features.
        layers: The number :math:`M` of LU layers.
        bins: The number of intervals of each :math:`\phi`.
        leading_bins: The number of intervals of the activation before the first layer.

    Raises:
        ValueError: If an argument is out of range.
    """

    starts: ClassVar[Mapping[str, int | None]] = {"standardise": START, "whiten": START}

    def __init__(self, features: int, layers: int = 4, bins: int = 16, leading_bins: int = 64) -> None:
        activation, leading = LearnedMonotone(features, bins), LearnedMonotone(features, leading_bins)
        super().__init__(features, layers, activation=activation, leading=leading)
        self.bins, self.leading_bins = bins, leading_bins

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "features": self.features, "layers": len(self.layers), "bins": self.bins, "leading_bins": self.leading_bins
        }  # fmt: skip


def _copy(activation: Activation | Mapping[str, Any]) -> Activation:
    """A copy of an activation, or a new one from its description."""
    return copy.deepcopy(activation) if isinstance(activation, Activation) else activation_from(activation)
