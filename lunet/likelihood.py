"""Likelihoods in bits, the paper's loss, and the figures that the released code prints."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from lunet import triangular
from lunet.lu_net import LUNet


def pixel_bits(log_prob: Tensor, features: int) -> Tensor:
    r"""Bits per pixel of 8-bit images, :math:`8 - \log_2 p(v) / D`.

    Args:
        log_prob: Log-densities in nats of pixel values :math:`v` between 0 and 1, with shape :math:`(N,)`.
        features: The number :math:`D` of pixels.
    """
    return 8 - log_prob / (features * math.log(2))


def poster_bits_per_pixel(
    log_prob: Tensor, features: int, *, code: Literal["lunet", "realnvp"], batch_factor: float = 1.0
) -> Tensor:
    r"""What the released code would print for these images: two currencies, and neither is bits per pixel.

    Both leave out the logit's Jacobian. LU-Net's code has :math:`\ln \pi` in place of :math:`\ln 2 \pi`, which is half
    a bit a pixel too low. RealNVP's code adds :math:`\log_2 255` and divides a short last batch by the full batch size.
    Compare these figures with the poster's, never with `pixel_bits`.

    Args:
        log_prob: The flow's log-densities in nats of the *logits*, with shape :math:`(N,)`.
        features: The number :math:`D` of pixels.
        code: Which of the two programs is asked.
        batch_factor: Images over full batches times batch size, for RealNVP's.

    References:
        https://github.com/spenquitt/LU-Net-Invertible-Neural-Networks (February 2023)
    """
    if code not in ("lunet", "realnvp"):
        raise ValueError(f"code is {code!r}; it is 'lunet' or 'realnvp'")
    bits = -log_prob / (features * math.log(2))
    return bits - 0.5 if code == "lunet" else bits * batch_factor + math.log2(255)


def poster_nll(flow: LUNet, x: Tensor) -> Tensor:
    r"""The paper's training loss of a batch, term by term as the poster prints it, in nats.

    .. math::
        \frac{N D}{2} \ln 2 \pi + \frac{1}{2} \sum_n \sum_d f_d(x_n)^2
        - \sum_n \sum_m \sum_d \ln \phi_m'((L_m U_m x_n)_d + b_{m, d}) - N \sum_m \sum_d \ln |u_{m, dd}|

    It equals ``-flow.log_prob(x).sum()``. A leading activation, which the paper has not, adds its log-slopes.

    Args:
        flow: The LU-Net.
        x: Data, with shape :math:`(N, D)`.

    References:
        LU-Net: Invertible Neural Networks Based on Matrix Factorization (Chan, Penquitt and Gottschalk, 2023),
        https://arxiv.org/abs/2302.10524
    """
    n, features = x.shape
    constant = 0.5 * n * features * math.log(2 * math.pi)
    log_slopes, log_diagonals = x.new_zeros(()), x.new_zeros(())
    if flow.leading is not None:
        x, log_slope = flow.leading(x)
        log_slopes = log_slope.sum()
    for layer in flow.layers:
        h = triangular.multiply(layer.lu, x) + layer.bias
        log_diagonals = log_diagonals + layer.lu.diagonal().abs().log().sum()
        if layer.activation is None:
            x = h
        else:
            x, log_slope = layer.activation(h)
            log_slopes = log_slopes + log_slope.sum()
    return constant + 0.5 * x.square().sum() - log_slopes - n * log_diagonals
