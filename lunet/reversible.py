"""Gradients without stored activations: the backward pass recomputes them by inverting each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def through(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The output of a sequence of layers, and the sum of their log-determinants.

    Only the last layer's output is stored for the gradient. Second derivatives are not supported.

    Cost: the forward pass costs the same. The backward pass inverts and recomputes each layer, so that a training step
    takes about 80% longer, and its activations take the memory of one layer, whatever the number of layers. The
    gradient is exact up to the rounding errors of the inverses, which accumulate from the last layer to the first.

    Args:
        layers: Layers with an ``inverse`` that return values :math:`(N, D)` and log-determinants :math:`(N,)`.
        x: The batch, with shape :math:`(N, D)`.

    Returns:
        The output, with shape :math:`(N, D)`, and the log-determinants, with shape :math:`(N,)`.
    """
    return _Reversible.apply(layers, x, *(parameter for layer in layers for parameter in layer.parameters()))


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layers: Sequence[Any], x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for layer in layers:
            x, layer_log_det = layer(x)
            log_det = log_det + layer_log_det
        ctx.layers = layers
        # The parameters too, so that autograd raises an error if they are modified before the backward pass.
        ctx.save_for_backward(x, *parameters)
        return x, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        z = ctx.saved_tensors[0]
        grads: list[Tensor | None] = []
        for layer in reversed(ctx.layers):
            x = layer.inverse(z).detach().requires_grad_()
            parameters = list(layer.parameters())
            with torch.enable_grad():
                outputs = layer(x)
            grad_z, *grad_parameters = torch.autograd.grad(
                outputs, (x, *parameters), (grad_z, grad_log_det), allow_unused=True
            )
            grads, z = [*grad_parameters, *grads], x.detach()
        return None, grad_z, *grads
