"""A check of what the class of a flow promises, for classes of one's own."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from lunet.base import Flow
from lunet.saving import describe, restore

POINTS = 3


class BrokenFlowError(ValueError):
    """Raised for a flow that is not what its class promises."""


def check_flow(flow: Flow) -> None:
    r"""Check shapes, log-determinant and inverse of a flow at a few points, and that it is saved as it is.

    Log-determinants are compared with those of the Jacobian, data with the inverse of their latents, and the flow with
    another one made of its ``config()`` and its ``state_dict()``. The tolerance is ten times the square root of the
    dtype's precision. What is wrong here would be a wrong likelihood, or a model that changes when it is saved.

    Cost: a backward pass for each feature, so give a flow of few features.

    Args:
        flow: The flow, which is put into eval mode. Its parameters should not be at their initial values, at which many
            a flow is the identity.

    Raises:
        BrokenFlowError: If the flow is wrong; the message says which method is, and by how much.

    Example:
        >>> check_flow(LUNet(features=4).double().uniform_())
    """
    name, points = type(flow).__name__, torch.rand if flow.unit_interval else torch.randn
    flow.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = points(POINTS, flow.features, dtype=flow.dtype).to(flow.device).requires_grad_()
        z, log_det = _forward(flow, x)
        jacobian = torch.stack([torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in z.T], 1)
        _compare(log_det, jacobian.slogdet().logabsdet, f"{name}._forward: log-determinants differ from the Jacobian's")
        with torch.no_grad():
            _compare(flow._inverse(z), x, f"{name}._inverse: data differ from those whose latents were given")
            again = _made_again(flow)
            where = f"{name}, made again of its config() and state_dict():"
            for what, given, right in zip(
                ("latents", "log-determinants"), _forward(again, x), (z, log_det), strict=True
            ):
                _compare(given, right, f"{where} {what} differ from the flow's own")


def _forward(flow: Flow, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and log-determinants, with their shapes checked."""
    output = flow._forward(x)
    parts = output if isinstance(output, tuple) else (output,)
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    if shapes != [tuple(x.shape), tuple(x.shape[:1])]:
        given, right = " and ".join(map(str, shapes)), f"latents {tuple(x.shape)} and log-determinants ({len(x)},)"
        raise BrokenFlowError(f"{type(flow).__name__}._forward: gives {given}, where {right} are right")
    return output


def _made_again(flow: Flow) -> Flow:
    try:
        config, tensors = describe(flow)
        again = restore(json.loads(json.dumps(config)), tensors)
    except Exception as error:
        reason = " ".join(str(error).split())
        message = f"{type(flow).__name__} cannot be made again of its config() and state_dict(): {reason}"
        raise BrokenFlowError(message) from error
    assert isinstance(again, Flow)
    return again.to(flow.device).eval()


def _compare(given: Tensor, right: Tensor, message: str) -> None:
    tolerance = 10 * torch.finfo(right.dtype).eps ** 0.5
    if given.shape != right.shape:
        raise BrokenFlowError(f"{message}: their shape is {tuple(given.shape)}, where {tuple(right.shape)} is right")
    if not torch.allclose(given, right, rtol=tolerance, atol=tolerance):
        raise BrokenFlowError(f"{message} by up to {float((given - right).detach().abs().max()):.3g}")
