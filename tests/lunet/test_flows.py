"""The contract of a flow, tested on every flow; a new model is one more row in `random_flows.every_flow`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from random_flows import CPU_DTYPES, DEVICES, every_flow, scale_, seeded
from torch import Tensor

from lunet import Flow, Histogram, ReleasedRealNVP, standard_normal_log_prob

FLOWS = every_flow()
MethodCall = Callable[[Flow, Tensor], object]
METHODS: dict[str, MethodCall] = {
    "forward": lambda flow, x: flow(x),
    "inverse": lambda flow, x: flow.inverse(x),
    "log_prob": lambda flow, x: flow.log_prob(x),
}

pytestmark = pytest.mark.parametrize("name", FLOWS)


def make(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Flow:
    return copy.deepcopy(FLOWS[name]).to(device, dtype)


def data(flow: Flow, n: int = 6) -> Tensor:
    """Rows at which the flow has density, on the real line with a standard deviation of 2."""
    like = flow._like()
    if isinstance(flow, Histogram):
        rows = torch.rand(n, flow.features, generator=seeded(1), dtype=torch.float64)
    else:
        rows = 2 * torch.randn(n, flow.features, generator=seeded(1), dtype=torch.float64)
    return rows.to(like)


def round_trip_tolerance(dtype: torch.dtype, device: str) -> float:
    if dtype == torch.float64:
        return 1e-9
    return 5e-3 if device == "cpu" else 5e-2  # convolutions on a GPU round to TF32


# Invertibility


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@torch.no_grad()
def test_inverse_undoes_forward(name: str, dtype: torch.dtype, device: str) -> None:
    flow = make(name, dtype, device)
    x = data(flow, 50)
    z, _ = flow(x)
    assert (z - x).abs().mean() > 0.1
    torch.testing.assert_close(flow.inverse(z), x, rtol=0, atol=round_trip_tolerance(dtype, device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@torch.no_grad()
def test_forward_undoes_inverse(name: str, dtype: torch.dtype, device: str) -> None:
    flow = make(name, dtype, device)
    z = torch.randn(50, flow.features, generator=seeded(2), dtype=torch.float64).to(flow._like())
    x = flow.inverse(z)
    torch.testing.assert_close(flow(x).z, z, rtol=0, atol=round_trip_tolerance(dtype, device))


# Jacobian


def test_log_det_is_that_of_the_jacobian(name: str) -> None:
    flow = make(name, torch.float64)
    x = data(flow)
    for row, log_det in zip(x, flow(x).log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None]).z[0], row)
        torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-8, atol=1e-8)


def test_log_prob_is_that_of_the_latents_and_the_log_det(name: str) -> None:
    flow = make(name, torch.float64)
    x = data(flow)
    z, log_det = flow(x)
    torch.testing.assert_close(flow.log_prob(x), standard_normal_log_prob(z) + log_det, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_float32_agrees_with_float64(name: str) -> None:
    single, double = make(name), make(name, torch.float64)
    x = data(single, 50)
    torch.testing.assert_close(single.log_prob(x).double(), double.log_prob(x.double()), rtol=1e-4, atol=1e-3)


# Shapes


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 7])
@torch.no_grad()
def test_shapes_and_dtypes(name: str, n: int, dtype: torch.dtype) -> None:
    flow = make(name, dtype)
    D = flow.features
    z, log_det = flow(data(flow, n))
    draws, log_probs = flow.sample_and_log_prob(n)
    outputs = [z, log_det, flow.inverse(z), flow.log_prob(data(flow, n)), flow.sample(n), draws, log_probs]
    assert [tuple(output.shape) for output in outputs] == [(n, D), (n,), (n, D), (n,), (n, D), (n, D), (n,)]
    assert {output.dtype for output in outputs} == {dtype}


def test_forward_returns_named_parts(name: str) -> None:
    flow = make(name)
    x = data(flow)
    transformed = flow(x)
    assert transformed.z is transformed[0]
    assert transformed.log_det is transformed[1]


@torch.no_grad()
def test_rows_are_independent(name: str) -> None:
    flow = make(name, torch.float64)
    x = data(flow)
    separately = torch.cat([flow.log_prob(row[None]) for row in x])
    torch.testing.assert_close(flow.log_prob(x), separately, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(flow.log_prob(x.flip(0)), separately.flip(0), rtol=1e-10, atol=1e-10)


# Samples


@torch.no_grad()
def test_samples_depend_only_on_their_generator(name: str) -> None:
    flow = make(name)
    assert torch.equal(flow.sample(4, seeded(3)), flow.sample(4, seeded(3)))
    assert not torch.equal(flow.sample(4, seeded(3)), flow.sample(4, seeded(4)))
    torch.manual_seed(5)
    first = flow.sample(4)
    assert not torch.equal(flow.sample(4), first)
    torch.manual_seed(5)
    assert torch.equal(flow.sample(4), first)


@torch.no_grad()
def test_sample_and_log_prob_agree_with_both(name: str) -> None:
    flow = make(name)
    x, log_prob = flow.sample_and_log_prob(20, seeded(3))
    assert torch.equal(x, flow.sample(20, seeded(3)))
    assert torch.equal(log_prob, flow.log_prob(x))


@torch.no_grad()
def test_samples_come_from_standard_normal_latents(name: str) -> None:
    flow = make(name, torch.float64)
    z, _ = flow(flow.sample(4000, seeded(3)))
    torch.testing.assert_close(z.mean(0), torch.zeros(flow.features).double(), rtol=0, atol=0.08)
    torch.testing.assert_close(z.std(0), torch.ones(flow.features).double(), rtol=0, atol=0.08)


# Modes and states


@torch.no_grad()
def test_train_and_eval_mode_agree(name: str) -> None:
    flow = make(name)
    if isinstance(flow, ReleasedRealNVP):
        pytest.skip("its running averages follow the batches")
    x = data(flow)
    scores = flow.eval().log_prob(x)
    flow.train()
    assert torch.equal(flow.log_prob(x), scores)
    assert torch.equal(flow.log_prob(x), scores)
    assert torch.equal(flow.eval().log_prob(x), scores)


@torch.no_grad()
def test_deep_copy_is_independent(name: str) -> None:
    flow = make(name)
    x = data(flow)
    scores = flow.log_prob(x)
    duplicate = copy.deepcopy(flow)
    assert torch.equal(duplicate.log_prob(x), scores)
    scale_(duplicate, 1.5)
    assert torch.equal(flow.log_prob(x), scores)
    assert not torch.equal(duplicate.log_prob(x), scores)


@torch.no_grad()
def test_load_state_dict_replaces_everything(name: str) -> None:
    flow, other = make(name), make(name)
    scale_(other, 1.5)
    x = data(flow)
    assert not torch.equal(other.log_prob(x), flow.log_prob(x))
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other.log_prob(x), flow.log_prob(x))
    assert torch.equal(other.sample(3, seeded()), flow.sample(3, seeded()))


@torch.no_grad()
def test_config_and_state_reconstruct_the_flow(name: str) -> None:
    flow = make(name)
    reconstructed = type(flow)(**flow.config()).eval()
    assert reconstructed.config() == flow.config()
    assert reconstructed.free_parameters() == flow.free_parameters()
    reconstructed.load_state_dict(flow.state_dict())
    assert torch.equal(reconstructed.log_prob(data(flow)), flow.log_prob(data(flow)))


@torch.no_grad()
def test_default_dtype_does_not_matter(name: str) -> None:
    flow = make(name)
    x = data(flow)
    scores, draws = flow.log_prob(x), flow.sample(3, seeded())
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(flow.log_prob(x), scores)
        assert torch.equal(flow.sample(3, seeded()), draws)
    finally:
        torch.set_default_dtype(torch.float32)


# Errors


@pytest.mark.parametrize("method", METHODS)
def test_another_shape_raises(name: str, method: str) -> None:
    flow = make(name)
    for shape in [(2, flow.features + 1), (flow.features,), (2, 1, flow.features)]:
        with pytest.raises(ValueError, match=rf"has shape \({shape[0]},.*this flow takes \(N, {flow.features}\)"):
            METHODS[method](flow, torch.zeros(shape))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64], ids=str)
def test_another_dtype_raises(name: str, method: str, dtype: torch.dtype) -> None:
    flow = make(name)
    with pytest.raises(TypeError, match=rf"is {dtype}; this flow works in torch\.float32"):
        METHODS[method](flow, torch.zeros(2, flow.features, dtype=dtype))


@pytest.mark.cuda
@pytest.mark.parametrize("method", METHODS)
def test_another_device_raises(name: str, method: str) -> None:
    flow = make(name)
    with pytest.raises(TypeError, match="is on cuda:0; this flow is on cpu"):
        METHODS[method](flow, data(flow).cuda())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_raise(name: str, method: str, value: float) -> None:
    flow = make(name).eval()
    x = data(flow)
    x[4, -1] = value
    if isinstance(flow, Histogram) and method == "inverse" and math.isinf(value):
        assert flow.inverse(x)[4, -1] == (value > 0)  # the limits, which are correct
        return
    with pytest.raises(ValueError, match=r"not finite, first in row 4|outside 0 to 1"):
        METHODS[method](flow, x)


def test_state_that_is_not_finite_raises(name: str) -> None:
    flow = make(name)
    tensor_name, tensor = next(iter(flow.state_dict().items()))
    tensor.flatten()[0] = math.nan
    with pytest.raises(ValueError, match=f"{tensor_name} has values that are not finite"):
        flow.check_invertible()


def test_negative_number_of_draws_raises(name: str) -> None:
    with pytest.raises(ValueError, match="n is -1"):
        make(name).sample(-1)
