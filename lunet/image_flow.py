"""Flows on 8-bit images: likelihoods in bits per pixel, all Jacobians included, and samples."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lunet import pixels
from lunet.base import Flow, LayerDiagnostics, standard_normal_log_prob, unchecked
from lunet.bases import Base


class ImageScores(NamedTuple):
    r"""Latents and likelihoods of 8-bit images for one draw of the dequantisation noise.

    Attributes:
        latents: The latents, with shape :math:`(N, D)`.
        log_prob: The log-densities of the flow's input in nats, without the logit's slopes, with shape :math:`(N,)`.
        bits: Bits per pixel of the 8-bit images, all Jacobians included, with shape :math:`(N,)`.
    """

    latents: Tensor
    log_prob: Tensor
    bits: Tensor


class ImageDiagnostics(NamedTuple):
    """`Diagnostics`, and the shares of 8-bit pixels reconstructed exactly and to within one level."""

    layers: list[LayerDiagnostics]
    latent_error: float
    pixels_exact: float
    pixels_within_one: float


class ImageFlow(nn.Module):
    r"""A flow after dequantisation and logit, which scores 8-bit images in bits per pixel and samples them.

    Args:
        flow: The flow on :math:`\mathbb{R}^D`, where :math:`D` is the number of pixels.
        shape: Channels, height and width of an image.
        margin: The distance of the logit's argument from 0 and 1, one number or a pair ``(low, high)``; ``None`` omits
            the logit, for a model of values between 0 and 1.

    Raises:
        ValueError: If the shape does not fit the flow, or a margin is out of range.
    """

    def __init__(
        self, flow: Flow, shape: tuple[int, int, int], margin: float | tuple[float, float] | None = 1e-6
    ) -> None:
        super().__init__()
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        if math.prod(self.shape) != flow.features:
            raise ValueError(f"an image of shape {self.shape} has {math.prod(self.shape)} values, not {flow.features}")
        self.flow = flow
        self.margin = None if margin is None else _margins(margin)

    def config(self) -> dict[str, Any]:
        """Shape and margin, as values that JSON can represent."""
        return {"shape": list(self.shape), "margin": None if self.margin is None else list(self.margin)}

    @property
    def device(self) -> torch.device:
        """The device of the flow."""
        return self.flow.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype in which the flow works."""
        return self.flow.dtype

    def preprocess(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        r"""The flow's input for 8-bit images.

        Args:
            images: 8-bit images, with shape :math:`(N, C, H, W)` or :math:`(N, H, W)` for one channel.
            generator: The random generator of the dequantisation noise.

        Returns:
            The input, with shape :math:`(N, D)`, and the log-determinants of the logit with respect to values between 0
            and 1, with shape :math:`(N,)`.

        Raises:
            TypeError: If the images are not uint8.
            ValueError: If their shape does not fit the flow.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images are {images.dtype}; 8-bit images have dtype torch.uint8, with values 0 to 255")
        if tuple(images.shape[1:]) not in {self.shape, self.shape[1:] if self.shape[0] == 1 else self.shape}:
            raise ValueError(f"images have shape {tuple(images.shape)}; this flow takes (N, {self.shape})")
        values = pixels.dequantise(images.flatten(1), self.dtype, generator)
        if self.margin is None:
            return values, values.new_zeros(len(values))
        y, log_slope = pixels.logit(values, *self.margin)
        return y, log_slope.sum(1)

    def postprocess(self, y: Tensor) -> Tensor:
        r"""The 8-bit images, with shape :math:`(N, C, H, W)`, of flow inputs with shape :math:`(N, D)`."""
        values = y if self.margin is None else pixels.inverse_logit(y, *self.margin)
        return pixels.quantise(values).unflatten(1, self.shape)

    def score(
        self, images: Tensor, generator: torch.Generator | None = None, *, base: Base | None = None
    ) -> ImageScores:
        r"""Latents, log-densities and bits per pixel of 8-bit images, for one draw of the dequantisation noise.

        Cost: one forward pass of the flow, and one of ``base``.

        Args:
            images: 8-bit images, with shape :math:`(N, C, H, W)` or :math:`(N, H, W)` for one channel.
            generator: The random generator of the noise.
            base: A base fitted to latents, which takes the place of the standard normal one; the densities are in its
                dtype.

        Raises:
            TypeError: If the images are not uint8.
            ValueError: If their shape does not fit the flow.
            NonFiniteError: If a latent is not finite, in eval mode.
        """
        y, log_slope = self.preprocess(images, generator)
        z, log_det = self.flow(y)
        if base is None:
            plain = type(self.flow).log_prob is Flow.log_prob  # else the flow has a log-density of its own
            log_prob = standard_normal_log_prob(z) + log_det if plain else self.flow.log_prob(y)
            return ImageScores(z, log_prob, pixels.pixel_bits(log_prob + log_slope, self.flow.features))
        log_prob = base.log_prob(z.to(base.dtype)) + log_det.to(base.dtype)
        return ImageScores(z, log_prob, pixels.pixel_bits(log_prob + log_slope.to(base.dtype), self.flow.features))

    def bits_per_dim(
        self,
        images: Tensor,
        draws: int = 1,
        generator: torch.Generator | None = None,
        *,
        bound: Literal["mean", "log_mean_exp"] = "mean",
    ) -> Tensor:
        r"""Bits per pixel of 8-bit images, an upper bound by dequantisation; lower is better.

        One draw of the noise :math:`u` gives :math:`8 - \log_2 p(v) / D` with :math:`v = (x + u) / 256`, where
        :math:`p(v)` is the flow's density times the slopes of the logit. The mean over the noise is an upper bound on
        the code length of the image.

        Cost: ``draws`` forward passes of the flow.

        Args:
            images: 8-bit images, with shape :math:`(N, C, H, W)` or :math:`(N, H, W)` for one channel.
            draws: The number of dequantisation draws for each image.
            generator: The random generator of the noise.
            bound: The mean of the single-draw bounds, or the tighter bound by the logarithm of the draws' mean density.

        Returns:
            Bits per pixel, with shape :math:`(N,)`.

        Raises:
            TypeError: If the images are not uint8.
            ValueError: If their shape does not fit the flow, or ``draws`` or ``bound`` is not allowed.

        References:
            A note on the evaluation of generative models (Theis, van den Oord and Bethge, 2016),
            https://arxiv.org/abs/1511.01844
        """
        if draws < 1:
            raise ValueError(f"draws is {draws}; at least 1 is needed")
        if bound not in ("mean", "log_mean_exp"):
            raise ValueError(f"bound is {bound!r}; it is 'mean' or 'log_mean_exp'")
        log_probs = torch.stack([self._log_prob_of_values(images, generator) for _ in range(draws)])
        log_prob = log_probs.mean(0) if bound == "mean" else log_probs.logsumexp(0) - math.log(draws)
        return pixels.pixel_bits(log_prob, self.flow.features)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        temperature: float = 1.0,
        base: Base | None = None,
    ) -> Tensor:
        r"""``n`` 8-bit images from the model, with shape :math:`(n, C, H, W)`; see `Flow.sample`.

        The latents are draws from ``base``, a base fitted to latents, if there is one.
        """
        if base is None:
            return self.postprocess(self.flow.sample(n, generator, temperature=temperature))
        latents = base.sample(n, generator, temperature=temperature)
        return self.postprocess(self.flow.inverse(latents.to(self.dtype)))

    @torch.no_grad()
    def diagnostics(self, images: Tensor, generator: torch.Generator | None = None) -> ImageDiagnostics:
        """How accurately the flow can be inverted, measured on 8-bit images, at least one; see `Flow.diagnostics`.

        The noise is the same in every call, unless there is a random generator.
        """
        y, _ = self.preprocess(images, generator or torch.Generator(images.device).manual_seed(0))
        with unchecked():
            reconstructions = self.postprocess(self.flow.inverse(self.flow(y).z))
        error = (reconstructions.flatten(1).int() - images.flatten(1).int()).abs()
        shares = torch.stack([(error <= levels).double().mean() for levels in (0, 1)])
        return ImageDiagnostics(*self.flow.diagnostics(y), *shares.tolist())

    def _log_prob_of_values(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        # Not by `score`: a flow may compute its log-density faster and more exactly than its map, as a histogram does.
        y, log_slope = self.preprocess(images, generator)
        return self.flow.log_prob(y) + log_slope


def _margins(margin: float | tuple[float, float]) -> tuple[float, float]:
    """The margins at 0 and at 1."""
    margins = margin if isinstance(margin, tuple) else (margin, margin)
    if len(margins) != 2 or not all(isinstance(value, int | float) and 0 <= value < 0.5 for value in margins):
        raise ValueError(f"margin is {margin}; give one number or a pair (low, high), each at least 0 and below 0.5")
    return float(margins[0]), float(margins[1])
