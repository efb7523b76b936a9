from __future__ import annotations

import math

import pytest
import torch
from random_flows import CPU_DTYPES, seeded

from lunet import NonFiniteError, pixel_bits, pixels

EVERY_LEVEL = torch.arange(256, dtype=torch.uint8)
MARGINS = [(1e-6, 1e-6), (5e-6, 5e-6), (0.05, 0.05), (0.05, 0.0), (0.0, 0.05), (0.0, 0.0)]

# Dequantisation


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
def test_noise_is_uniform_and_strictly_between_0_and_1(dtype: torch.dtype) -> None:
    images = EVERY_LEVEL.repeat(400, 1)
    values = pixels.dequantise(images, dtype, seeded())
    noise = values.double() * 256 - images
    assert values.dtype == dtype
    assert noise.min() > 0
    assert noise.max() < 1
    share = noise.flatten().histc(bins=10, min=0, max=1) / noise.numel()
    torch.testing.assert_close(share, torch.full((10,), 0.1).double(), rtol=0, atol=0.005)
    assert abs(torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()]).corrcoef()[0, 1]) < 0.02


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("extreme", ["lowest", "highest"])
def test_extreme_draws_are_inside_and_exact(extreme: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = 0.0 if extreme == "lowest" else 1 - torch.finfo(dtype).eps / 2
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.full(size, draw, dtype=dtype))
    values = pixels.dequantise(EVERY_LEVEL, dtype)
    noise = values.double() * 256 - EVERY_LEVEL
    assert noise.min() > 0
    assert noise.max() < 1
    assert (noise == noise[0]).all()
    assert values.max() < 1
    assert torch.equal(pixels.quantise(values), EVERY_LEVEL)


def test_dequantisation_depends_only_on_its_generator() -> None:
    images = EVERY_LEVEL.repeat(2, 1)
    first = pixels.dequantise(images, torch.float32, seeded(1))
    assert torch.equal(first, pixels.dequantise(images, torch.float32, seeded(1)))
    assert not torch.equal(first, pixels.dequantise(images, torch.float32, seeded(2)))
    assert first.shape == images.shape


def test_other_dtypes_raise() -> None:
    with pytest.raises(TypeError, match=r"dtype is torch\.bfloat16.*float32 or torch\.float64"):
        pixels.dequantise(EVERY_LEVEL, torch.bfloat16)


def test_quantise_maps_values_outside_to_the_nearest_pixel() -> None:
    values = torch.tensor([-0.3, 0.0, 1 / 256, 0.5, 255 / 256, 1.0, 1.2])
    assert pixels.quantise(values).tolist() == [0, 0, 1, 128, 255, 255, 255]


# Logit


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_logit_round_trip_preserves_every_level(margin: tuple[float, float], dtype: torch.dtype) -> None:
    images = EVERY_LEVEL.repeat(50, 1)
    values = pixels.dequantise(images, dtype, seeded())
    logits, log_slope = pixels.logit(values, *margin)
    assert logits.isfinite().all()
    assert log_slope.isfinite().all()
    reconstructed = pixels.inverse_logit(logits, *margin)
    torch.testing.assert_close(reconstructed, values, rtol=0, atol=8 * torch.finfo(dtype).eps)
    assert torch.equal(pixels.quantise(reconstructed), images)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_logit_is_the_formula(margin: tuple[float, float]) -> None:
    low, high = margin
    values = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(pixels.logit(values, *margin)[0], torch.logit(low + (1 - low - high) * values))


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_logit_log_slope_is_the_derivative(margin: tuple[float, float]) -> None:
    values = pixels.dequantise(EVERY_LEVEL, torch.float64, seeded()).requires_grad_()
    logits, log_slope = pixels.logit(values, *margin)
    (derivative,) = torch.autograd.grad(logits.sum(), values)
    torch.testing.assert_close(log_slope.exp(), derivative, rtol=1e-12, atol=0)


def test_each_margin_applies_to_its_end() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    bottom, top = pixels.logit(ends, 0.05, 0.01)[0].sigmoid().tolist()
    assert bottom == pytest.approx(0.05)
    assert top == pytest.approx(0.99)
    values = torch.rand(20, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(pixels.logit(values, 0.05, 0.01)[0], -pixels.logit(1 - values, 0.01, 0.05)[0])


def test_log_slope_in_float32_is_accurate_at_both_ends() -> None:
    values = pixels.dequantise(EVERY_LEVEL.repeat(200, 1), torch.float32, seeded())
    for margin in MARGINS:
        _, single = pixels.logit(values, *margin)
        _, double = pixels.logit(values.double(), *margin)
        torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-5)


# Bits per pixel


@pytest.mark.parametrize(("density", "bits"), [(1.0, 8.0), (256.0, 0.0), (2.0, 7.0), (0.5, 9.0)])
def test_pixel_bits_of_a_constant_density(density: float, bits: float) -> None:
    log_prob = torch.tensor([784 * math.log(density)], dtype=torch.float64)
    torch.testing.assert_close(pixel_bits(log_prob, 784), torch.tensor([bits], dtype=torch.float64))


def test_a_mean_below_0_is_impossible() -> None:
    assert pixels.mean_bits(torch.tensor([0.5, -0.25])) == 0.125
    assert pixels.mean_bits(torch.tensor([-1e-6])) == pytest.approx(-1e-6)  # rounding
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(NonFiniteError, match=r"the mean of 2 images is (nan|inf|-inf) bits per pixel"):
            pixels.mean_bits(torch.tensor([1.0, value]))
    with pytest.raises(pixels.ImpossibleLikelihoodError, match=r"the mean of 2 images is -0\.1250 bits per pixel"):
        pixels.mean_bits(torch.tensor([-0.5, 0.25]))
