"""The models to measure: flows of this project and of other libraries, and the dense layers they are compared with."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lunet import Flow, LearnedMonotone, LUNet, RealNVP, ReleasedRealNVP

FEATURES = 784
LAYERS = 4
SHAPE = (1, 28, 28)
FLOOR = "8 linear layers"
GLOW_WIDTH = 672


@dataclass(frozen=True)
class Contestant:
    """A model to measure: ``log_prob`` maps points (N, 784) to log-densities (N,), ``sample`` draws n samples."""

    model: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], object]

    def parameters(self) -> int:
        """The number of trainable values."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)


def floor() -> Contestant:
    """The triangular matrices of four LU layers as eight dense ones, zeros included."""
    model = nn.Sequential(*(nn.Linear(FEATURES, FEATURES) for _ in range(2 * LAYERS)))
    return Contestant(
        model, lambda x: model(x).square().sum(1), lambda n: model(torch.randn(n, FEATURES, device=_device(model)))
    )


def lunet() -> Contestant:
    """The paper's LU-Net: four layers with leaky softplus between them."""
    return from_flow(LUNet(FEATURES, LAYERS))


def lunet_reversible() -> Contestant:
    """The same LU-Net, trained without stored activations."""
    flow = LUNet(FEATURES, LAYERS)
    flow.reversible = True
    return from_flow(flow)


def lunet_learned() -> Contestant:
    """The same layers with learned activations between them, and one before the first."""
    return from_flow(
        LUNet(FEATURES, LAYERS, activation=LearnedMonotone(FEATURES, 16), leading=LearnedMonotone(FEATURES, 64))
    )


def realnvp() -> Contestant:
    """The paper's RealNVP: 3 + 3 + 2 couplings, 64 planes, separate networks for scale and shift."""
    return from_flow(RealNVP(SHAPE))


def realnvp_bfloat16() -> Contestant:
    """The same RealNVP with its networks in bfloat16; the variables that they scale and shift stay in float32."""
    flow = RealNVP(SHAPE)

    def log_prob(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return flow.log_prob(x)

    def sample(n: int) -> Tensor:
        with torch.autocast(_device(flow).type, dtype=torch.bfloat16):
            return flow.sample(n)

    return Contestant(flow, log_prob, sample)


def realnvp_shared() -> Contestant:
    """The same couplings, each with one network for scale and shift."""
    return from_flow(RealNVP(SHAPE, networks="shared"))


def realnvp_released() -> Contestant:
    """A plain reimplementation of the RealNVP that was released with the paper."""
    return from_flow(ReleasedRealNVP(SHAPE))


def nflows_lu(*, cached: bool) -> Contestant:
    """LULinear layers of nflows with leaky ReLU between them."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow as NFlow
    from nflows.transforms import CompositeTransform, LeakyReLU, LULinear

    parts = [part for _ in range(LAYERS) for part in (LULinear(FEATURES, using_cache=cached), LeakyReLU(0.1))]
    flow = NFlow(CompositeTransform(parts[:-1]), StandardNormal([FEATURES]))
    return Contestant(flow, flow.log_prob, flow.sample)


def normflows_lu() -> Contestant:
    """LULinearPermute layers of normflows, without activations between them: normflows has no elementwise one."""
    import normflows

    layers = [normflows.flows.LULinearPermute(FEATURES) for _ in range(LAYERS)]
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(FEATURES, trainable=False), layers)
    return Contestant(flow, flow.log_prob, flow.sample)


def zuko_couplings() -> Contestant:
    """Four affine couplings of zuko, with networks of 512 units."""
    import zuko

    return _from_zuko(zuko.flows.NICE(FEATURES, transforms=LAYERS, hidden_features=(512, 512)))


def zuko_maf() -> Contestant:
    """Four masked autoregressive layers of zuko, with networks of 512 units."""
    import zuko

    return _from_zuko(zuko.flows.MAF(FEATURES, transforms=LAYERS, hidden_features=(512, 512)))


def normflows_glow() -> Contestant:
    """A Glow of normflows with two scales and about as many parameters as our RealNVP."""
    import normflows as nf

    blocks = [
        [nf.flows.GlowBlock(channels, GLOW_WIDTH) for _ in range(4)] + [nf.flows.Squeeze()] for channels in (8, 4)
    ]
    merges = [nf.flows.Merge()]
    bases = [nf.distributions.DiagGaussian(shape, trainable=False) for shape in ((8, 7, 7), (2, 14, 14))]
    flow = nf.MultiscaleFlow(bases, blocks, merges, class_cond=False)
    return Contestant(flow, lambda x: flow.log_prob(x.unflatten(1, SHAPE), None), flow.sample)


# Models of vectors with 784 features, and models of images; each with the library that it needs.
VECTORS: dict[str, tuple[str | None, Callable[[], Contestant]]] = {
    FLOOR: (None, floor),
    "lunet": (None, lunet),
    "lunet, reversible": (None, lunet_reversible),
    "lunet_learned": (None, lunet_learned),
    "nflows LULinear": ("nflows", lambda: nflows_lu(cached=False)),
    "nflows LULinear, cached": ("nflows", lambda: nflows_lu(cached=True)),
    "normflows LULinear": ("normflows", normflows_lu),
    "zuko affine couplings": ("zuko", zuko_couplings),
    "zuko MAF": ("zuko", zuko_maf),
}
IMAGES: dict[str, tuple[str | None, Callable[[], Contestant]]] = {
    "realnvp": (None, realnvp),
    "realnvp, bfloat16 networks": (None, realnvp_bfloat16),
    "realnvp, shared networks": (None, realnvp_shared),
    "realnvp_released": (None, realnvp_released),
    "normflows Glow": ("normflows", normflows_glow),
}


def available(contestants: dict[str, tuple[str | None, Callable[[], Contestant]]]) -> tuple[list[str], list[str]]:
    """The names of the models whose library is installed, and of those whose library is missing."""
    installed = [name for name, (library, _) in contestants.items() if not library or importlib.util.find_spec(library)]
    return installed, [name for name in contestants if name not in installed]


def from_flow(flow: Flow) -> Contestant:
    """A flow of this project, as it is."""
    return Contestant(flow, flow.log_prob, flow.sample)


def _from_zuko(flow: nn.Module) -> Contestant:
    return Contestant(flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


# The other libraries use functions that torch has deprecated.
warnings.filterwarnings("ignore", message=r"torch\.(triangular_solve|lu) is deprecated")
