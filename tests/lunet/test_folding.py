from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from random_flows import CPU_DTYPES, random_lu, seeded
from torch import Tensor

from lunet import LULayer, folding, triangular
from lunet.folding import MINIMUM_ROWS

ROWS = MINIMUM_ROWS


def random_layer(features: int, dtype: torch.dtype = torch.float64) -> LULayer:
    layer = LULayer(features).to(dtype).eval()
    with torch.no_grad():
        layer.lu.copy_(random_lu(features))
        layer.bias.normal_(generator=seeded(1))
    return layer


def batch(features: int, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, features, generator=seeded(2), dtype=dtype)


def unfolded(layer: LULayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values and arguments by the triangles, without folding."""
    return triangular.multiply(layer.lu, x) + layer.bias, triangular.solve(layer.lu, x - layer.bias)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the matrices that have been computed, in order."""
    names: list[str] = []
    for name in ("product", "inverse"):
        compute: Callable[[Tensor], Tensor | None] = getattr(folding, name)

        def record(lu: Tensor, name: str = name, compute: Callable[[Tensor], Tensor | None] = compute) -> Tensor | None:
            names.append(name)
            return compute(lu)

        monkeypatch.setattr(folding, name, record)
    return names


# Values


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("features", [1, 2, 7, 64, 784])
@torch.no_grad()
def test_folded_layer_agrees_with_the_triangles(features: int, dtype: torch.dtype, computed: list[str]) -> None:
    layer, x = random_layer(features, dtype), batch(features, dtype=dtype)
    values, arguments = unfolded(layer, x)
    tolerance = 200 * torch.finfo(dtype).eps
    for _ in range(4 * features // ROWS + 1):
        folded_values, log_det = layer(x)
        folded_arguments = layer.inverse(x)
    torch.testing.assert_close(folded_values, values, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(folded_arguments, arguments, rtol=tolerance, atol=tolerance)
    assert torch.equal(log_det, triangular.log_abs_det(layer.lu).expand(ROWS))
    assert sorted(computed) == ["inverse", "product"]


@torch.no_grad()
def test_matrices_are_computed_at_the_break_even(computed: list[str]) -> None:
    layer, x = random_layer(200), batch(200)
    for _ in range(3):
        layer(x)
    assert computed == []
    layer(x)
    assert computed == ["product"]
    for _ in range(12):
        layer.inverse(x)
    assert computed == ["product"]
    layer.inverse(x)
    assert computed == ["product", "inverse"]


@torch.no_grad()
def test_matrices_are_computed_once(computed: list[str]) -> None:
    layer, x = random_layer(20), batch(20)
    for _ in range(5):
        layer(x)
        layer.inverse(x)
    assert computed == ["product", "inverse"]


# Changed weights


def change_in_place(layer: LULayer) -> None:
    layer.lu.mul_(1.5)


def change_behind_autograd(layer: LULayer) -> None:
    layer.lu.data[3, 2] += 1e-12


def swap_two_values(layer: LULayer) -> None:
    layer.lu[[0, 1], [2, 2]] = layer.lu[[1, 0], [2, 2]]


def load_another_state(layer: LULayer) -> None:
    layer.load_state_dict(LULayer(20).double().state_dict())


def take_a_step(layer: LULayer) -> None:
    layer.lu.grad = torch.ones_like(layer.lu)
    torch.optim.SGD([layer.lu], lr=1e-3).step()


def replace_the_parameter(layer: LULayer) -> None:
    layer.lu = torch.nn.Parameter(layer.lu * 2)


def replace_the_data(layer: LULayer) -> None:
    layer.lu.data = layer.lu * 2


CHANGES = [
    change_in_place, change_behind_autograd, swap_two_values, load_another_state, take_a_step,
    replace_the_parameter, replace_the_data,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_changed_weight_is_detected(change: Callable[[LULayer], None]) -> None:
    layer, x = random_layer(20), batch(20)
    for _ in range(2):
        before = layer(x)[0], layer.inverse(x)
    change(layer)
    after = layer(x)[0], layer.inverse(x)
    for old, new, expected in zip(before, after, unfolded(layer, x), strict=True):
        torch.testing.assert_close(new, expected, rtol=1e-13, atol=1e-13)
        assert not torch.equal(old, new)


@torch.no_grad()
def test_train_mode_discards_the_matrices(computed: list[str]) -> None:
    layer, x = random_layer(20), batch(20)
    layer(x)
    layer.train()(x)
    assert computed == ["product"]
    layer.eval()(x)
    assert computed == ["product", "product"]


@torch.no_grad()
def test_another_dtype_and_a_copy_have_separate_matrices() -> None:
    layer, x = random_layer(20), batch(20)
    layer(x)
    other = copy.deepcopy(layer)
    other.lu.mul_(2)
    torch.testing.assert_close(other(x)[0], unfolded(other, x)[0])
    torch.testing.assert_close(layer(x)[0], unfolded(layer, x)[0])
    assert layer.float()(x.float())[0].dtype == torch.float32


# No folding


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda layer: layer(batch(20, ROWS - 1)), id="few rows"),
        pytest.param(lambda layer: layer.train()(batch(20)), id="train mode"),
        pytest.param(lambda layer: torch.func.vmap(layer)(batch(20, ROWS - 1).expand(ROWS, -1, -1)), id="vmap"),
        pytest.param(
            lambda layer: torch.func.functional_call(layer, {"lu": random_lu(20)}, (batch(20),)), id="functional call"
        ),
    ],
)
@torch.no_grad()
def test_small_batches_and_training_use_the_triangles(call: Callable[[LULayer], object], computed: list[str]) -> None:
    call(random_layer(20))
    assert computed == []


def test_gradients_are_those_of_the_triangles(computed: list[str]) -> None:
    layer, x = random_layer(20), batch(20)
    with torch.no_grad():
        layer(x)
    layer(x)[0].sum().backward()
    assert layer.lu.grad is not None
    assert layer.lu.grad.abs().amin() > 0
    assert computed == ["product"]


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@torch.no_grad()
def test_scales_of_the_inputs_do_not_matter(dtype: torch.dtype) -> None:
    layer, x = random_layer(20), batch(20)
    lower, upper = triangular.unpack(layer.lu)
    scales = torch.logspace(-6, 3, 20, dtype=torch.float64)
    layer.lu.copy_(triangular.pack(lower, upper * scales))
    expected = unfolded(layer, x)[1]
    layer.to(dtype)
    assert triangular.condition(layer.lu) > 1e6
    matrix = folding.inverse(layer.lu)
    assert matrix is not None
    folded = (x.to(dtype) - layer.bias) @ matrix.mT
    tolerance = 200 * torch.finfo(dtype).eps
    torch.testing.assert_close(folded.double() * scales, expected * scales, rtol=tolerance, atol=tolerance)
    reconstructed = triangular.multiply(layer.lu, folded) + layer.bias
    torch.testing.assert_close(reconstructed, x.to(dtype), rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_inverse_that_would_lose_digits_is_not_folded(computed: list[str]) -> None:
    layer, x = random_layer(20), batch(20)
    layer.lu[4, 4] = 1e-9
    for _ in range(3):
        layer.inverse(x)
    assert torch.equal(layer.inverse(x), unfolded(layer, x)[1])
    assert computed == ["inverse"]
    assert folding.inverse(layer.lu) is None
