"""RealNVP, the paper's baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from lunet.base import Flow
from lunet.coupling import AffineCoupling, Coupling, channel_halves, checkerboard

Shape = tuple[int, int, int]


class RealNVP(Flow, kind="realnvp"):
    r"""RealNVP with two scales: affine couplings with checkerboard masks, then channel masks, then checkerboards again.

    After ``couplings[0]`` checkerboard couplings, a squeeze trades resolution for channels. After ``couplings[1]``
    channel-wise couplings, half of the channels are factored out as latents. The other half passes through
    ``couplings[2]`` checkerboard couplings whose networks have twice the planes. Batch statistics are not used, so
    scores are the same in train and eval mode.

    Args:
        shape: Channels, height and width of an image; height and width are even.
        couplings: The numbers of couplings at full resolution, after the squeeze, and at the end.
        planes: Channels inside the networks.
        blocks: Residual blocks of each network.
        networks: ``separate`` networks for scale and shift, as in the paper, or one ``shared`` by both.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Density estimation using Real NVP (Dinh, Sohl-Dickstein and Bengio, 2017), https://arxiv.org/abs/1605.08803
    """

    starts: ClassVar[Mapping[str, int | None]] = {"standardise": 1024}

    def __init__(
        self,
        shape: Shape = (1, 28, 28),
        couplings: tuple[int, int, int] = (3, 3, 2),
        planes: int = 64,
        blocks: int = 2,
        networks: Literal["separate", "shared"] = "separate",
    ) -> None:
        channels, height, width = shape
        super().__init__(channels * height * width)
        if height % 2 or width % 2 or height * width < 8:
            raise ValueError(f"shape is {tuple(shape)}; the squeeze needs even height and width, with 8 pixels or more")
        if len(couplings) != 3 or min(couplings) < 0 or sum(couplings) == 0:
            raise ValueError(f"couplings are {tuple(couplings)}; they are three numbers, of which one is above 0")
        if planes < 1 or blocks < 1:
            raise ValueError(f"planes is {planes} and blocks is {blocks}; both are at least 1")
        if networks not in ("separate", "shared"):
            raise ValueError(f"networks is {networks!r}; it is 'separate' or 'shared'")
        self.shape = (channels, height, width)
        self.options: dict[str, Any] = {
            "couplings": list(couplings), "planes": planes, "blocks": blocks, "networks": networks
        }  # fmt: skip
        squeezed, half = (4 * channels, height // 2, width // 2), (2 * channels, height // 2, width // 2)
        first, second, last = ([index % 2 == 0 for index in range(count)] for count in couplings)

        def stack(masks: list[Tensor], shape: Shape, planes: int) -> Sequence[AffineCoupling]:
            couplings = nn.ModuleList(self._coupling(mask, shape, planes) for mask in masks)
            return cast("Sequence[AffineCoupling]", couplings)

        board = self._checkerboard
        self.full = stack([board(self.shape, first=even) for even in first], self.shape, planes)
        self.squeezed = stack([channel_halves(squeezed[0], first=even) for even in second], squeezed, planes)
        self.final = stack([board(half, first=even) for even in last], half, 2 * planes)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"shape": list(self.shape), **self.options}

    def conditioners(self) -> Sequence[nn.Module]:
        """The networks of all couplings."""
        couplings = (coupling for stage in (self.full, self.squeezed, self.final) for coupling in stage)
        return [network for coupling in couplings for network in coupling.conditioners()]

    @torch.no_grad()
    def standardise_(self, x: Tensor) -> Self:
        r"""Initialise the affine maps so that each channel of a sample gets mean 0 and variance 1 in every coupling.

        Args:
            x: The sample, with shape :math:`(N, D)`.

        Raises:
            ValueError: If a value is not finite, or a channel is constant; the flow is then unchanged.
        """
        self._check(x, "x")
        with self._restore_on_error():
            self._transform(x, standardise=True)
            self.check_invertible()
        return self

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not len(x):  # torch cannot squeeze or normalise an empty batch
            return x, x.new_zeros(0)
        return self._transform(x, standardise=False)

    def _transform(self, x: Tensor, *, standardise: bool) -> tuple[Tensor, Tensor]:
        """The latents and log-determinants; on request each coupling is first standardised on its input."""
        h, log_det = x.unflatten(1, self.shape), x.new_zeros(len(x))
        latents = []
        for stage in (self.full, self.squeezed, self.final):
            for coupling in stage:
                if standardise:
                    cast("Coupling", coupling).standardise_(h)
                h, coupling_log_det = coupling(h)
                log_det = log_det + coupling_log_det
            if stage is self.full:
                h = pixel_unshuffle(h, 2)
            elif stage is self.squeezed:
                factored, h = self._factor_out(h)
                latents.append(factored.flatten(1))
        return torch.cat([*latents, h.flatten(1)], dim=1), log_det

    def _inverse(self, z: Tensor) -> Tensor:
        if not len(z):
            return z
        factored, h = z.chunk(2, dim=1)
        channels, height, width = self.shape
        half = (2 * channels, height // 2, width // 2)
        h = h.unflatten(1, half)
        for stage in (self.final, self.squeezed, self.full):
            if stage is self.squeezed:
                h = self._factor_in(factored.unflatten(1, half), h)
            elif stage is self.full:
                h = pixel_shuffle(h, 2)
            for coupling in reversed(stage):
                h = coupling.inverse(h)
        return h.flatten(1)

    def _factor_out(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The half of the channels that becomes latent, and the remaining half."""
        factored, remaining = h.chunk(2, dim=1)
        return factored, remaining

    def _factor_in(self, factored: Tensor, remaining: Tensor) -> Tensor:
        """The inverse of `_factor_out`."""
        return torch.cat([factored, remaining], dim=1)

    def _coupling(self, mask: Tensor, shape: Shape, planes: int) -> AffineCoupling:
        """A coupling for images of a shape (C, H, W)."""
        del shape  # its parameters do not depend on the position in an image
        return Coupling(mask, planes, self.options["blocks"], shared=self.options["networks"] == "shared")

    def _checkerboard(self, shape: Shape, *, first: bool) -> Tensor:
        """The mask of a checkerboard coupling, with the shape (C, H, W)."""
        return checkerboard(*shape, first=first)
