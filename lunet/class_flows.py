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
        flows: The flow of each class by its name, which contains no dot; all for images of the same shape.

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
        self._flows = nn.ModuleDict(flows)

    def __getitem__(self, name: str) -> ImageFlow:
        """The flow of a class; raises `KeyError`, which lists the classes, if the name is unknown."""
        if name not in self._flows:
            raise KeyError(f"class {name!r} has no flow; there are: {', '.join(self.names)}")
        flow = self._flows[name]
        assert isinstance(flow, ImageFlow)
        return flow

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

    def classify(
        self,
        images: Tensor,
        draws: int = 1,
        generator: torch.Generator | None = None,
        *,
        prior: Sequence[float] | None = None,
    ) -> Tensor:
        r"""The most probable class of 8-bit images by Bayes' rule, as indices of `names` with shape :math:`(N,)`.

        Args:
            images: 8-bit images, with shape :math:`(N, C, H, W)` or :math:`(N, H, W)` for one channel.
            draws: The number of dequantisation draws for each image and flow.
            generator: The random generator of the dequantisation noise.
            prior: The probability of each class, in the order of `names`; uniform if ``None``.

        Raises:
            ValueError: If ``prior`` is not one probability for each class.
        """
        prior = [1 / len(self.names)] * len(self.names) if prior is None else list(prior)
        if len(prior) != len(self.names) or min(prior) < 0 or not math.isclose(sum(prior), 1, rel_tol=1e-6):
            raise ValueError(f"prior is {prior}; it is a probability for each of the {len(self.names)} classes")
        bits = self.bits_per_dim(images, draws, generator)
        pixels = math.prod(images.shape[1:])
        return (torch.tensor(prior, device=bits.device).log2() - bits * pixels).argmax(1)
