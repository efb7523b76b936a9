"""The base class of all flows: likelihoods, samples and checks from a map and its inverse."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint
from torch.nn.utils import get_total_norm

from lunet.registry import register

_checked = ContextVar("checked", default=True)


class NonFiniteError(ValueError):
    """Raised for a value or a parameter that is not finite, or a linear layer that is singular."""


@contextmanager
def unchecked() -> Iterator[None]:
    """Do not check in the block that the results of flows are finite, so that no call waits for a GPU."""
    token = _checked.set(False)
    try:
        yield
    finally:
        _checked.reset(token)


class Transformed(NamedTuple):
    r"""The result of a forward pass: latents with shape :math:`(N, D)`, log-determinants with shape :math:`(N,)`."""

    z: Tensor
    log_det: Tensor


class LayerDiagnostics(NamedTuple):
    r"""How close a layer's linear part is to singular: its smallest :math:`|u_{dd}|` and its estimated condition."""

    name: str
    smallest_diagonal: float
    condition: float


class Diagnostics(NamedTuple):
    """How accurately a flow can be inverted: its linear layers, and the largest round-trip error of latents."""

    layers: list[LayerDiagnostics]
    latent_error: float


class Flow(nn.Module, ABC):
    r"""An invertible map :math:`f: \mathbb{R}^D \to \mathbb{R}^D` from data to standard normal latents.

    A subclass implements `_forward`, `_inverse` and `config`; likelihoods, samples and checks follow from them, and it
    can be saved and loaded under its name, ``kind`` in the class statement or else the name of the class. Each call
    checks shape, dtype and device. It also checks that the results are finite, except in a forward pass in train
    mode, under compilation, and during the capture of a CUDA graph, because reading a value makes the CPU wait for the
    GPU. The error names the cause, such as a NaN in the data or a singular layer.

    Args:
        features: The number :math:`D` of features.

    Attributes:
        kinds: Every subclass by its name.
        kind: The name of the class.
        starts: The initialisations by name; the method has an underscore after it, and takes ``x``, a sample of the
            data, or ``generator``, or both. The value is the number of rows that suffice, or None for all. A flow with
            the start ``fit`` is fitted in closed form.
        unit_interval: Whether the flow is defined on values between 0 and 1 only, and needs no logit before it.

    Example:
        >>> class Shift(Flow, kind="shift"):
        ...     def __init__(self, features: int) -> None:
        ...         super().__init__(features)
        ...         self.shift = nn.Parameter(torch.zeros(features))
        ...
        ...     def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ...         return x - self.shift, x.new_zeros(len(x))
        ...
        ...     def _inverse(self, z: Tensor) -> Tensor:
        ...         return z + self.shift
        ...
        ...     def config(self) -> dict[str, Any]:
        ...         return {"features": self.features}
    """

    kinds: ClassVar[dict[str, type[Flow]]] = {}
    kind: ClassVar[str]
    starts: ClassVar[Mapping[str, int | None]] = {}
    unit_interval: ClassVar[bool] = False

    def __init_subclass__(cls, *, kind: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kind = kind or cls.__name__
        register(Flow.kinds, cls.kind, cls)

    def __init__(self, features: int) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features is {features}; a flow needs at least 1")
        self.features = features

    @abstractmethod
    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The latents, with shape :math:`(N, D)`, and :math:`\ln |\det dz / dx|`, with shape :math:`(N,)`."""

    @abstractmethod
    def _inverse(self, z: Tensor) -> Tensor:
        r"""The data, with shape :math:`(N, D)`, of latents with the same shape."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as values that JSON can represent."""

    def conditioners(self) -> Sequence[nn.Module]:
        """The networks whose outputs parameterise the map, such as those of a coupling; none by default.

        The likelihood is exact whatever they compute, so that they may compute in a reduced precision.
        """
        return []

    def free_parameters(self) -> int:
        """The number of values that are fitted to data."""
        return sum(parameter.numel() for parameter in self.parameters())

    def check_invertible(self) -> None:
        """Raise `NonFiniteError`, which names the layer, if the parameters do not define an invertible map."""
        tensors = {
            name: tensor.detach()
            for name, tensor in (*self.named_parameters(), *self.named_buffers())
            if tensor.is_floating_point() and tensor.numel()
        }
        if bool(get_total_norm(tensors.values(), math.inf).isfinite()):  # one read of a GPU for all tensors
            return
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise NonFiniteError(f"{name} has values that are not finite: no likelihood and no inverse")

    def forward(self, x: Tensor) -> Transformed:
        r"""The latents of data, and the log-determinants of the map.

        Args:
            x: Data, with shape :math:`(N, D)`.

        Returns:
            The latents, with shape :math:`(N, D)`, and :math:`\ln |\det dz / dx|`, with shape :math:`(N,)`.

        Raises:
            ValueError: If the shape is not :math:`(N, D)`.
            NonFiniteError: If a result is not finite, in eval mode.
            TypeError: If the dtype or the device is not the flow's.
        """
        self._check(x, "x")
        z, log_det = self._forward(x)
        if not self.training and not torch.compiler.is_compiling():
            self._require_finite(x, "x", z, log_det)
        return Transformed(z, log_det)

    def inverse(self, z: Tensor) -> Tensor:
        r"""The data whose latents are ``z``.

        Args:
            z: Latents, with shape :math:`(N, D)`.

        Returns:
            Data, with shape :math:`(N, D)`.

        Raises:
            ValueError: If the shape is not :math:`(N, D)`.
            NonFiniteError: If a result is not finite.
            TypeError: If the dtype or the device is not the flow's.
        """
        self._check(z, "z")
        x = self._inverse(z)
        if not torch.compiler.is_compiling():
            self._require_finite(z, "z", x)
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        r"""The log-densities of data in nats, for standard normal latents.

        Args:
            x: Data, with shape :math:`(N, D)`.

        Returns:
            :math:`\ln p(x)`, with shape :math:`(N,)`.
        """
        z, log_det = self(x)
        return standard_normal_log_prob(z) + log_det

    def sample(self, n: int, generator: torch.Generator | None = None, *, temperature: float = 1.0) -> Tensor:
        r"""``n`` independent draws from the model, with shape :math:`(n, D)`.

        Args:
            n: The number of draws.
            generator: The random generator of the latents.
            temperature: The standard deviation of the latents. Below 1, draws are closer to the centre, and no longer
                follow the model.
        """
        return self.inverse(self._draw_latents(n, generator, temperature))

    def sample_and_log_prob(
        self, n: int, generator: torch.Generator | None = None, *, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        r"""``n`` draws, with shape :math:`(n, D)`, and their log-densities in nats, with shape :math:`(n,)`.

        The densities are the model's, at temperature 1, whatever the temperature of the draws.
        """
        x = self.sample(n, generator, temperature=temperature)
        return x, self.log_prob(x)

    def distribution(self) -> FlowDistribution:
        """This flow as a `torch.distributions.Distribution`."""
        return FlowDistribution(self)

    @torch.no_grad()
    def diagnostics(self, x: Tensor) -> Diagnostics:
        r"""How accurately the flow can be inverted, measured on data with shape :math:`(N, D)`.

        The error is the largest :math:`|f(f^{-1}(z)) - z|` over the latents :math:`z = f(x)`, in the flow's dtype.

        Raises:
            NonFiniteError: If a layer is singular or a value is not finite; the message names the layer.
        """
        self.check_invertible()
        with unchecked():
            z, _ = self(x)
            reconstruction, _ = self(self.inverse(z))
        error = float((reconstruction - z).abs().amax()) if len(x) else 0.0
        if not math.isfinite(error):
            self(self.inverse(self(x).z))  # raises an error that names the cause
            raise NonFiniteError(f"the error of the round trip is {error}")
        return Diagnostics(self._layer_diagnostics(), error)

    def _layer_diagnostics(self) -> list[LayerDiagnostics]:
        """The diagnostics of each linear layer."""
        return []

    @contextmanager
    def _restore_on_error(self) -> Iterator[None]:
        """Restore parameters and buffers if the body raises."""
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        try:
            yield
        except Exception:
            self.load_state_dict(state)
            raise

    def _draw_latents(self, n: int, generator: torch.Generator | None, temperature: float = 1.0) -> Tensor:
        if n < 0:
            raise ValueError(f"n is {n}; the number of draws is 0 or more")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it is finite and at least 0")
        like = self._like()
        device = like.device if generator is None else generator.device
        z = torch.randn(n, self.features, generator=generator, device=device, dtype=like.dtype).to(like.device)
        return z if temperature == 1 else temperature * z

    @property
    def device(self) -> torch.device:
        """The device of the parameters and buffers."""
        return self._like().device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype of the parameters and buffers, in which the flow works."""
        return self._like().dtype

    def _like(self) -> Tensor:
        """A tensor with the dtype and the device of the flow."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                return tensor
        return torch.empty(0)

    def _check(self, value: Tensor, name: str) -> None:
        like = self._like()
        if value.ndim != 2 or value.shape[1] != self.features:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; this flow takes (N, {self.features})")
        if value.dtype != like.dtype and not torch.is_autocast_enabled(value.device.type):
            raise TypeError(f"{name} is {value.dtype}; this flow works in {like.dtype}: convert one to the other")
        if value.device != like.device:
            raise TypeError(f"{name} is on {value.device}; this flow is on {like.device}: move one to the other")

    def _require_finite(self, value: Tensor, name: str, *results: Tensor) -> None:
        """Raise `NonFiniteError`, which names the cause, if a result is not finite."""
        if not _checked.get() or value.is_meta or (value.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        # A sum costs a tenth, and is not finite if a value is not; it may also overflow, so that the values decide.
        if all(bool(result.sum().isfinite()) or bool(result.isfinite().all()) for result in results):
            return
        if not value.isfinite().all():
            row = int((~value.isfinite()).any(1).nonzero()[0])
            raise NonFiniteError(f"{name} has a value that is not finite, first in row {row}")
        self.check_invertible()
        raise NonFiniteError(f"{name} leaves the range of {value.dtype} on its way through the flow")


class FlowDistribution(Distribution):
    r"""The distribution over :math:`\mathbb{R}^D` that a flow defines, for code that uses `torch.distributions`.

    Args:
        flow: The flow; it is not copied, so gradients reach its parameters through `rsample` and `log_prob`.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        super().__init__(event_shape=torch.Size([flow.features]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""The log-densities in nats, with shape :math:`S`, of values with shape :math:`S + (D,)`."""
        return self.flow.log_prob(value.reshape(-1, value.shape[-1])).reshape(value.shape[:-1])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        r"""Draws with shape :math:`S + (D,)` for the sample shape :math:`S`; gradients reach the parameters."""
        shape = torch.Size(sample_shape)
        return self.flow.sample(shape.numel()).reshape(*shape, self.flow.features)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    r"""The standard normal log-densities :math:`-\frac{1}{2} (D \ln 2 \pi + |z|^2)` in nats, with shape :math:`(N,)`.

    Args:
        z: Latents, with shape :math:`(N, D)`.
    """
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
