from __future__ import annotations

import pytest
import torch
from random_flows import random_gaussian, random_histogram, random_lu_net, randomise_, seeded

from lunet import Flow, RealNVP

FLOWS = {
    "lunet": random_lu_net(4, layers=2),
    "realnvp": randomise_(RealNVP((1, 4, 4), (1, 1, 1), planes=2, blocks=1, shared=True)),
    "gaussian": random_gaussian(4),
    "histogram": random_histogram(4, levels=8),
}


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
@torch.no_grad()
def test_a_flow_compiles_into_one_graph(flow: Flow) -> None:
    x = torch.rand(6, flow.features, generator=seeded())
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(flow.log_prob, backend="eager", fullgraph=True)(x), flow.log_prob(x))
    torch.testing.assert_close(torch.compile(flow.inverse, backend="eager", fullgraph=True)(x), flow.inverse(x))
