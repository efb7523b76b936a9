"""Initialisations of LU layers: random as in the released code, or from a sample of the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lunet import triangular
from lunet.activation import Activation, LeakySoftplus
from lunet.learned_monotone import LearnedMonotone
from lunet.lu_layer import LULayer
from lunet.marginals import fit_marginals
from lunet.whitening import CHUNK, whitening


@torch.no_grad()
def uniform_(layers: Sequence[LULayer], generator: torch.Generator | None = None) -> None:
    r"""Draw all entries uniformly within :math:`\pm 1 / \sqrt{D}`; see `LUNet.uniform_`."""
    for layer in layers:
        bound = len(layer.bias) ** -0.5
        layer.lu.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def standardise_(layers: Sequence[LULayer], leading: Activation | None, x: Tensor, offset: float) -> None:
    """Set each layer so that its output before the activation has variance 1; see `LUNet.standardise_`."""
    _standardise_layers_(layers, _fit_leading_(leading, x), offset)


@torch.no_grad()
def whiten_(layers: Sequence[LULayer], leading: Activation | None, x: Tensor, offset: float) -> None:
    """Set the first layer to the whitening map, and standardise the others; see `LUNet.whiten_`."""
    first, *others = layers
    h = _fit_leading_(leading, x)
    _whiten_layer_(first, h)
    _standardise_layers_(others, _output_(first, h, offset), offset)


@torch.no_grad()
def copula_(
    layers: Sequence[LULayer], leading: Activation | None, x: Tensor, generator: torch.Generator | None, ridge: float
) -> None:
    """Set all layers but the last to bend the marginals, and the last to whiten; see `LUNet.copula_`."""
    *bending, last = layers
    activation = bending[0].activation if bending else None
    if leading is not None or not isinstance(activation, LeakySoftplus):
        raise ValueError("copula_ bends marginals by leaky softpluses between two layers or more; use whiten_")
    scales, shifts = fit_marginals(x, activation, len(bending), generator)
    for layer, scale, shift in zip(bending, scales, shifts, strict=False):
        layer.lu.copy_(scale.diag())
        layer.bias.copy_(shift)
        x = _output_(layer, x, offset=0.0)
    _whiten_layer_(last, x, scales[-1], shifts[-1], ridge)


def _fit_leading_(leading: Activation | None, x: Tensor) -> Tensor:
    """Fit the leading activation to the sample if it is learned; the values that it passes to the first layer."""
    if leading is None:
        return x
    if isinstance(leading, LearnedMonotone):
        leading.fit_(x)
    return torch.cat([leading(rows)[0] for rows in x.split(CHUNK)])


def _standardise_layers_(layers: Sequence[LULayer], h: Tensor, offset: float) -> None:
    """Standardise layers in sequence, where ``h`` is the input of the first one on the sample."""
    for layer in layers:
        std, mean = torch.std_mean(h, dim=0)
        layer.lu.copy_(std.reciprocal().diag())
        layer.bias.copy_(-mean / std)
        h = _output_(layer, h, offset)


def _whiten_layer_(
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


def _output_(layer: LULayer, h: Tensor, offset: float) -> Tensor:
    """Add ``offset`` to the bias before a leaky softplus; the layer's output on the sample."""
    if isinstance(layer.activation, LeakySoftplus):
        layer.bias.add_(offset)
    return torch.cat([layer(rows)[0] for rows in h.split(CHUNK)])
