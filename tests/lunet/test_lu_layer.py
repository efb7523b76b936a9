from __future__ import annotations

import pytest
import torch
from random_flows import CPU_DTYPES, random_lu, seeded

from lunet import Activation, LeakySoftplus, LearnedMonotone, LULayer
from lunet.folding import MINIMUM_ROWS

# Formula


def test_layer_is_phi_of_l_u_x_plus_b() -> None:
    layer = LULayer(3, LeakySoftplus(0.2)).double()
    lu = random_lu(3)
    with torch.no_grad():
        layer.lu.copy_(lu)
        layer.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    x = torch.tensor([[1.0, -0.5, 0.25]], dtype=torch.float64)
    h = (lu.tril(-1) + torch.eye(3)) @ (lu.triu() @ x[0]) + layer.bias
    z, log_det = layer(x)
    torch.testing.assert_close(z[0], 0.2 * h + 0.8 * h.exp().log1p())
    slopes = 0.2 + 0.8 / (1 + (-h).exp())
    torch.testing.assert_close(log_det[0], slopes.log().sum() + lu.diagonal().abs().log().sum())
    torch.testing.assert_close(layer.inverse(z), x)


# Folding


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("activation", [LeakySoftplus(0.1), LearnedMonotone(120)], ids=["leaky-softplus", "spline"])
@torch.no_grad()
def test_folded_layer_with_an_activation_agrees_with_the_triangles(activation: Activation, dtype: torch.dtype) -> None:
    layer = LULayer(120, activation).to(dtype)
    layer.lu.copy_(random_lu(120))
    layer.bias.normal_(generator=seeded(1))
    x = 3 * torch.randn(MINIMUM_ROWS, 120, generator=seeded(2), dtype=torch.float64).to(dtype)
    z, log_det = layer.train()(x)
    layer.eval()
    for _ in range(8):
        folded, folded_log_det = layer(x)
        reconstructed = layer.inverse(z)
    tolerance = 1000 * torch.finfo(dtype).eps
    assert not torch.equal(folded, z)
    torch.testing.assert_close(folded, z, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(folded_log_det, log_det, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(reconstructed, x, rtol=tolerance, atol=tolerance)
