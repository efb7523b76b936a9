"""The check of a flow: the library's flows pass it, and each thing that a class can get wrong is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_flows import CPU_DTYPES, copy_with_rows, every_flow
from torch import Tensor, nn

from lunet import Activation, BrokenFlowError, Flow, LUNet, NonFiniteError, check_flow

FLOWS = every_flow()


class Scaled(Flow, kind="scaled_of_this_test"):
    """The map (x - b) e^s, with one fault or none."""

    def __init__(self, features: int, fault: str = "") -> None:
        super().__init__(features)
        self.fault = fault
        self.log_scale, self.shift = (nn.Parameter(torch.linspace(-1, 0.5, features)) for _ in range(2))
        self.order = torch.randperm(features)
        if fault != "order":
            del self.order
            self.register_buffer("order", torch.randperm(features))

    def config(self) -> dict[str, Any]:
        features = self.features + (self.fault == "size")
        config = {"features": features, "fault": "inverse" if self.fault == "value" else self.fault}
        if self.fault == "missing":
            del config["fault"]
        return config | ({"colour": "red"} if self.fault == "unknown" else {})

    def _forward(self, x: Tensor) -> Any:
        z = ((x - self.shift) * self.log_scale.exp())[:, self.order]
        log_det = self.log_scale.sum().expand(len(x))
        match self.fault:
            case "log_det":
                log_det = log_det + 1
            case "zero":
                log_det = torch.zeros_like(log_det)
            case "column":
                log_det = log_det[:, None]
            case "scalar":
                log_det = log_det[0]
            case "alone":
                return z
            case "nan":
                z = z / 0
        return z, log_det

    def _inverse(self, z: Tensor) -> Tensor:
        x = z[:, self.order.argsort()] * (-self.log_scale).exp() + self.shift
        return x + 0.1 if self.fault == "inverse" else x


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("name", FLOWS)
def test_the_flows_of_the_library_pass(name: str, dtype: torch.dtype) -> None:
    check_flow(copy_with_rows(FLOWS[name], dtype)[0])


def test_it_disturbs_neither_the_random_numbers_nor_the_flow() -> None:
    flow = Scaled(4)
    before, state = torch.get_rng_state(), {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    check_flow(flow)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in flow.state_dict().items())
    assert all(parameter.grad is None for parameter in flow.parameters())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("log_det", r"Scaled\._forward: log-determinants differ from the Jacobian's by up to 1$"),
        ("zero", r"Scaled\._forward: log-determinants differ from the Jacobian's by up to 1$"),
        ("column", r"Scaled\._forward: returns \(3, 4\) and \(3, 1\) instead of .* and log-determinants \(3,\)"),
        ("scalar", r"Scaled\._forward: returns \(3, 4\) and \(\) instead of "),
        ("alone", r"Scaled\._forward: returns \(3, 4\) instead of "),
        ("inverse", r"Scaled\._inverse: the inverse of latents differs from the data by up to 0\.1$"),
        ("order", r"Scaled, rebuilt from its config\(\) and state_dict\(\): latents differ"),
        ("missing", r"Scaled cannot be rebuilt from its config\(\) and state_dict\(\): .* lacks 'fault'"),
        ("unknown", r"Scaled cannot be rebuilt .*'colour'"),
        ("size", r"Scaled cannot be rebuilt .*size mismatch"),
    ],
)  # fmt: skip
def test_a_fault_is_named(fault: str, words: str) -> None:
    with pytest.raises(BrokenFlowError, match=words):
        check_flow(Scaled(4, fault))


def test_numbers_that_are_not_finite_are_another_error() -> None:
    with pytest.raises(NonFiniteError, match=r"Scaled\._forward: the Jacobian has values that are not finite"):
        check_flow(Scaled(4, "nan"))


@torch.no_grad()
def test_it_works_where_gradients_are_off() -> None:
    check_flow(Scaled(4))
    with pytest.raises(BrokenFlowError, match="log-determinants differ"):
        check_flow(Scaled(4, "log_det"))


def test_the_points_may_be_given() -> None:
    x = torch.rand(2, 4)
    check_flow(Scaled(4), x)
    assert not x.requires_grad
    with pytest.raises(BrokenFlowError, match=r"returns \(5, 4\) and \(5, 1\)"):
        check_flow(Scaled(4, "column"), torch.rand(5, 4))
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\)"):
        check_flow(Scaled(4), torch.rand(2, 5))


def test_half_precision_is_compared_in_float64() -> None:
    flow = Scaled(4, "log_det").half()
    nn.init.zeros_(flow.log_scale)
    with pytest.raises(BrokenFlowError, match="log-determinants differ from the Jacobian's by up to 1"):
        check_flow(flow)


def test_a_jacobian_that_is_nearly_singular_is_not_compared() -> None:
    flow = Scaled(4, "log_det").double()
    with torch.no_grad():
        flow.log_scale[0] = -29
    with pytest.raises(BrokenFlowError, match=r"log-determinants differ from the Jacobian's by up to 1$"):
        check_flow(flow)
    with torch.no_grad():
        flow.log_scale[0] = -34  # a condition number of 1e15
    check_flow(flow)


def test_a_deep_flow_passes_in_float64() -> None:
    check_flow(LUNet(16, 200).double())


class Decreasing(Activation, kind="decreasing_of_this_test"):
    """The map -x with a wrong inverse, or a configuration that makes another activation."""

    def __init__(self, factor: float = -1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.factor * x, torch.zeros_like(x)

    def inverse(self, y: Tensor) -> Tensor:
        return y * abs(self.factor)

    def config(self) -> dict[str, Any]:
        return {"factor": -self.factor}


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (-1.0, r"LUNet\._inverse: the inverse of latents differs"),
        (1.0, r"LUNet, rebuilt .*: latents differ from the flow's own"),
    ],
)
def test_the_faults_of_an_activation_are_found(factor: float, words: str) -> None:
    with pytest.raises(BrokenFlowError, match=words):
        check_flow(LUNet(4, 2, activation=Decreasing(factor)))
