"""One flow for each class: sampling by class, and classification by Bayes' rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lunet.image_flow import ImageFlow


class ClassFlows(nn.Module):
    r"""Image flows, one for each class, as the paper trains them: together a generative classifier.

    Args:
        flows: The flow of each class by its name; all for images of the same shape.

    Raises:
        ValueError: If there are no flows, or their images have different shapes.

    Example:
        >>> model = ClassFlows({name: ImageFlow(LUNet(16), shape=(1, 4, 4)) for name in ("cat", "dog")})
        >>> model.sample("dog", 3).shape
        torch.Size([3, 1, 4, 4])
        >>> names = [model.names[index] for index in model.classify(model.sample("dog", 3))]
    """

    def __init__(self, flows: Mapping[str, ImageFlow]) -> None:
        super().__init__()
        if not flows:
            raise ValueError("flows is empty; a flow for one class is needed at least")
        shapes = {flow.shape for flow in flows.values()}
        if len(shapes) > 1:
            raise ValueError(f"flows have images of several shapes: {', '.join(map(str, sorted(shapes)))}")
        self.names = tuple(flows)
        self._flows = nn.ModuleList(flows.values())  # its names may be any, unlike those of a ModuleDict

    def __getitem__(self, name: str) -> ImageFlow:
        """The flow of a class; raises `KeyError`, which lists the classes, if the name is unknown."""
        if name not in self.names:
            raise KeyError(f"class {name!r} has no flow; there are: {', '.join(self.names)}")
        flow = self._flows[self.names.index(name)]
        assert isinstance(flow, ImageFlow)
        return flow

    @property
    def device(self) -> torch.device:
        """The device of the flows, which is that of the first."""
        return self[self.names[0]].device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype of the flows, which is that of the first."""
        return self[self.names[0]].dtype

    def sample(
        self, name: str, n: int, generator: torch.Generator | None = None, *, temperature: float = 1.0
    ) -> Tensor:
        r"""``n`` 8-bit images of a class, with shape :math:`(n, C, H, W)`."""
        return self[name].sample(n, generator, temperature=temperature)

    def bits_per_dim(self, images: Tensor, draws: int = 1, generator: torch.Generator | None = None) -> Tensor:
        r"""Bits per pixel of 8-bit images under the flow of each class, with shape :math:`(N, \text{classes})`.

        Cost: ``draws`` forward passes of every flow.
        """
        return torch.stack([self[name].bits_per_dim(images, draws, generator) for name in self.names], dim=1)

    def posterior(
        self,
        images: Tensor,
        draws: int = 1,
        generator: torch.Generator | None = None,
        *,
        prior: Sequence[float] | None = None,
    ) -> Tensor:
        r"""The probability of each class by Bayes' rule, with shape :math:`(N, \text{classes})`, in float64.

        Args:
            images: 8-bit images, with shape :math:`(N, C, H, W)` or :math:`(N, H, W)` for one channel.
            draws: The number of dequantisation draws for each image and flow.
            generator: The random generator of the dequantisation noise.
            prior: The probability of each class, in the order of `names`; uniform if ``None``.

        Raises:
            ValueError: If ``prior`` is not one probability for each class.
        """
        return self._joint(images, draws, generator, prior).softmax(1)

    def mixture_bits_per_dim(
        self,
        images: Tensor,
        draws: int = 1,
        generator: torch.Generator | None = None,
        *,
        prior: Sequence[float] | None = None,
    ) -> Tensor:
        r"""Bits per pixel under the mixture of the flows of all classes, with shape :math:`(N,)`, in float64.

        The arguments and errors are those of `posterior`; ``prior`` has the weights of the mixture.
        """
        return -self._joint(images, draws, generator, prior).logsumexp(1) / self._nats_per_bit

    def classify(
        self,
        images: Tensor,
        draws: int = 1,
        generator: torch.Generator | None = None,
        *,
        prior: Sequence[float] | None = None,
    ) -> Tensor:
        r"""The most probable class of 8-bit images by Bayes' rule, as indices of `names` with shape :math:`(N,)`.

        The arguments and errors are those of `posterior`.
        """
        return self.posterior(images, draws, generator, prior=prior).argmax(1)

    @property
    def _nats_per_bit(self) -> float:
        """The nats of an image for one bit per pixel."""
        return math.prod(self[self.names[0]].shape) * math.log(2)

    def _joint(
        self, images: Tensor, draws: int, generator: torch.Generator | None, prior: Sequence[float] | None
    ) -> Tensor:
        r"""The log-probabilities in nats of each class together with each image, :math:`(N, \text{classes})`."""
        prior = [1 / len(self.names)] * len(self.names) if prior is None else list(prior)
        if len(prior) != len(self.names) or min(prior) < 0 or not math.isclose(sum(prior), 1, rel_tol=1e-6):
            raise ValueError(f"prior is {prior}; it is a probability for each of the {len(self.names)} classes")
        bits = self.bits_per_dim(images, draws, generator).double()
        return bits.new_tensor(prior).log() - bits * self._nats_per_bit
