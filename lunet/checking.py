"""A check of what the class of a flow promises, for custom classes."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from lunet.base import Flow, NonFiniteError
from lunet.saving import describe, restore

POINTS = 3
TOLERANCE = 3e-3  # absolute and relative: above the error of an iterative inverse, below that of a wrong formula


class BrokenFlowError(ValueError):
    """Raised for a flow that is not what its class promises."""


def check_flow(flow: Flow, x: Tensor | None = None) -> None:
    r"""Check shapes, log-determinant and inverse of a flow at a few points, and that it is saved as it is.

    Log-determinants are compared with those of the Jacobian, data with the inverse of their latents, and the flow with
    one that is rebuilt from its ``config()`` and its ``state_dict()``. What is wrong here would be a wrong likelihood,
    or a model that changes when it is saved. Differences of up to 0.003 are accepted, absolute or relative; a deep flow
    may need float64 to be that accurate. A Jacobian so close to singular that its own determinant has a larger error is
    not compared.

    Cost: a backward pass for each feature, so give a flow of few features.

    Args:
        flow: The flow, which is put into eval mode. Its parameters should not be at their initial values, at which many
            a flow is the identity.
        x: Data, with shape :math:`(N, D)`; by default three points, standard normal or, if the flow is defined there
            alone, uniform between 0 and 1.

    Raises:
        BrokenFlowError: If the flow is wrong; the message says which method is, and by how much.
        NonFiniteError: If a result is not finite.
        ValueError, TypeError: If ``x`` has a shape or a dtype that the flow does not take.

    Example:
        >>> check_flow(LUNet(features=4).double().uniform_())
    """
    name, generator = type(flow).__name__, torch.Generator().manual_seed(0)
    if x is None:
        draw = torch.rand if flow.unit_interval else torch.randn
        x = draw(POINTS, flow.features, generator=generator, dtype=flow.dtype).to(flow.device)
    flow._check(x, "x")
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        z, log_det = _forward(flow.eval(), x)
        if not z.requires_grad:
            raise BrokenFlowError(f"{name}._forward: the latents have no gradient; nothing can be trained before them")
        jacobian = torch.stack([torch.autograd.grad(feature.sum(), x, retain_graph=True)[0] for feature in z.T], 1)
    if not jacobian.isfinite().all():
        raise NonFiniteError(f"{name}._forward: the Jacobian has values that are not finite")
    singular_values = torch.linalg.svdvals(jacobian.double())
    precise = singular_values.amin(1) > singular_values.amax(1) * torch.finfo(flow.dtype).eps / TOLERANCE
    expected = singular_values.log().sum(1)
    _compare(log_det[precise], expected[precise], f"{name}._forward: log-determinants differ from the Jacobian's")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        _compare(flow._inverse(z.clone()), x, f"{name}._inverse: the inverse of latents differs from the data")
        z_again, log_det_again = _forward(_rebuilt(flow), x)
    rebuilt = f"{name}, rebuilt from its config() and state_dict()"
    _compare(z_again, z, f"{rebuilt}: latents differ from the flow's own")
    _compare(log_det_again, log_det, f"{rebuilt}: log-determinants differ from the flow's own")


def _forward(flow: Flow, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and log-determinants, with their shapes checked."""
    output = flow._forward(x.clone())
    parts = output if isinstance(output, tuple | list) else (output,)
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    if shapes != [tuple(x.shape), tuple(x.shape[:1])]:
        returned = " and ".join(map(str, shapes))
        expected = f"latents {tuple(x.shape)} and log-determinants ({len(x)},)"
        raise BrokenFlowError(f"{type(flow).__name__}._forward: returns {returned} instead of {expected}")
    z, log_det = parts
    return z, log_det


def _rebuilt(flow: Flow) -> Flow:
    try:
        config, tensors = describe(flow)
        rebuilt = restore(json.loads(json.dumps(config)), tensors)
    except Exception as error:
        reason = " ".join(str(error).split())
        message = f"{type(flow).__name__} cannot be rebuilt from its config() and state_dict(): {reason}"
        raise BrokenFlowError(message) from error
    assert isinstance(rebuilt, Flow)
    return rebuilt.to(flow.device).eval()


def _compare(given: Tensor, expected: Tensor, message: str) -> None:
    given, expected = given.detach().double(), expected.detach().double()
    if given.shape != expected.shape:
        raise BrokenFlowError(f"{message}: its shape is {tuple(given.shape)} instead of {tuple(expected.shape)}")
    for which, values in (("former", given), ("latter", expected)):
        if not values.isfinite().all():
            raise NonFiniteError(f"{message}: not all of the {which} are finite")
    if not torch.allclose(given, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise BrokenFlowError(f"{message} by up to {float((given - expected).abs().max()):.3g}")
