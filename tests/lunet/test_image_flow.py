from __future__ import annotations

import math

import pytest
import torch
from random_flows import CPU_DTYPES, copy_with_rows, correlated, random_lu_net, random_realnvp, seeded, small_flows
from torch import Tensor

from lunet import Gaussian, Histogram, ImageFlow, LUNet, pixel_bits, standard_normal_log_prob

SHAPE = (1, 4, 4)
FLOWS = small_flows()


def random_images(n: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, *shape), generator=seeded(seed), dtype=torch.uint8)


@pytest.fixture
def flow() -> ImageFlow:
    return ImageFlow(random_lu_net(16), SHAPE).eval()


# Bits per pixel


@pytest.mark.parametrize("bound", ["mean", "log_mean_exp"])
@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
def test_uniform_model_has_exactly_8_bits_on_any_image(dtype: torch.dtype, bound: str) -> None:
    uniform = ImageFlow(Histogram(784).to(dtype), (1, 28, 28), margin=None)
    extremes = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 28, 28)
    images = torch.cat([random_images(5, (1, 28, 28)), extremes])
    bits = uniform.bits_per_dim(images, draws=2, generator=seeded(), bound=bound)  # type: ignore[arg-type]
    assert torch.equal(bits, torch.full((7,), 8, dtype=dtype))


def test_histogram_of_two_levels_has_one_bit() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, *SHAPE)
    flow = ImageFlow(Histogram(16, pseudocount=1e-9).double(), SHAPE, margin=None)
    flow.flow.fit_(flow.preprocess(images, seeded())[0])  # type: ignore[operator]
    torch.testing.assert_close(
        flow.bits_per_dim(images, generator=seeded(1)), torch.ones(2).double(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("margin", "mean", "std"), [(1e-6, 0.7, 1.5), (5e-6, -1.0, 0.8), (0.0, 0.0, 2.0),
                                                     ((0.05, 0.0), 0.5, 0.5)])  # fmt: skip
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one(margin: float | tuple[float, float], mean: float, std: float) -> None:
    gaussian = Gaussian(1).double()
    gaussian.mean.fill_(mean)
    gaussian.whitening.fill_(1 / std)
    every_image = torch.arange(256, dtype=torch.uint8).repeat(2000)[:, None, None, None]
    bits = ImageFlow(gaussian, (1, 1, 1), margin).bits_per_dim(every_image, 3, seeded(), bound="log_mean_exp")
    # With 255 for 256 it would be 1.004, without the margin in the slope 0.95, with a factor of 2 pi far more.
    assert (-bits).exp2().sum().item() / 2000 == pytest.approx(1, abs=5e-4)


@torch.no_grad()
def test_colour_images_are_scored_by_value() -> None:
    images = random_images(6, (2, 2, 4))
    flow = ImageFlow(random_realnvp((2, 2, 4)).double(), (2, 2, 4), (0.05, 0.0))
    values, log_det = flow.preprocess(images, seeded(1))
    expected = 8 - (flow.flow.log_prob(values) + log_det) / (16 * math.log(2))
    torch.testing.assert_close(flow.bits_per_dim(images, generator=seeded(1)), expected)


def test_preprocess_returns_its_log_det(flow: ImageFlow) -> None:
    images = random_images(3)
    flow = flow.double()
    logits, log_det = flow.preprocess(images, seeded())
    p = logits.sigmoid()
    torch.testing.assert_close(log_det, (math.log(1 - 2e-6) - p.log() - (1 - p).log()).sum(1), rtol=1e-6, atol=0)


# Several draws


@torch.no_grad()
def test_several_draws_give_the_mean_of_single_draws(flow: ImageFlow) -> None:
    images, generator = random_images(5), seeded(1)
    singles = torch.stack([flow.bits_per_dim(images, generator=generator) for _ in range(7)])
    torch.testing.assert_close(flow.bits_per_dim(images, draws=7, generator=seeded(1)), singles.mean(0))
    assert (singles.std(0) > 0).all()


@torch.no_grad()
def test_log_mean_exp_is_the_formula_and_tighter(flow: ImageFlow) -> None:
    images, generator = random_images(50), seeded(1)
    flow = flow.double()
    singles = torch.stack([flow.bits_per_dim(images, generator=generator) for _ in range(5)])
    tight = flow.bits_per_dim(images, draws=5, generator=seeded(1), bound="log_mean_exp")
    nats = -singles * 16 * math.log(2)
    torch.testing.assert_close(tight, -(nats.logsumexp(0) - math.log(5)) / (16 * math.log(2)))
    assert (tight < flow.bits_per_dim(images, draws=5, generator=seeded(1))).all()


@torch.no_grad()
def test_log_mean_exp_of_one_draw_is_that_draw(flow: ImageFlow) -> None:
    images = random_images(5)
    one = flow.bits_per_dim(images, generator=seeded(1), bound="log_mean_exp")
    assert torch.equal(one, flow.bits_per_dim(images, generator=seeded(1)))


# Scores with latents


@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_scores_are_the_formula(name: str) -> None:
    flow, _ = copy_with_rows(FLOWS[name])
    model = ImageFlow(flow, (1, 1, flow.features), None if isinstance(flow, Histogram) else 0.05).eval()
    images = random_images(40, model.shape)
    y, log_slope = model.preprocess(images, seeded(1))
    z, log_det = flow(y)
    latents, log_prob, bits = model.score(images, seeded(1))
    assert torch.equal(latents, z)
    # A histogram computes its log-density in float64, without the map.
    formula = flow.log_prob(y) if isinstance(flow, Histogram) else standard_normal_log_prob(z) + log_det
    assert torch.equal(log_prob, formula)
    assert torch.equal(bits, pixel_bits(log_prob + log_slope, flow.features))
    assert torch.equal(bits, model.bits_per_dim(images, generator=seeded(1)))


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@torch.no_grad()
def test_a_fitted_base_follows_the_flow(flow: ImageFlow, dtype: torch.dtype) -> None:
    images = random_images(2000)
    y, log_slope = flow.preprocess(images, seeded(1))
    z, log_det = flow.flow(y)
    base = Gaussian(16).to(dtype).fit_(z.to(dtype)).eval()
    scores = flow.score(images, seeded(1), base=base)
    assert {scores.log_prob.dtype, scores.bits.dtype} == {dtype}
    assert torch.equal(scores.latents, z)
    expected = base.log_prob(z.to(dtype)) + log_det
    torch.testing.assert_close(scores.log_prob, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(scores.bits, pixel_bits(expected + log_slope, 16), rtol=1e-5, atol=0)
    assert scores.bits.mean() < flow.score(images, seeded(1)).bits.mean()


@torch.no_grad()
def test_samples_are_drawn_from_a_fitted_base(flow: ImageFlow) -> None:
    base = Gaussian(16).double()
    base.mean.fill_(0.5)
    expected = flow.postprocess(flow.flow.inverse(base.sample(7, seeded(1), temperature=0.5).float()))
    samples = flow.sample(7, seeded(1), temperature=0.5, base=base)
    assert torch.equal(samples, expected)
    assert not torch.equal(samples, flow.sample(7, seeded(1), temperature=0.5))


def test_device_and_dtype_are_those_of_the_flow() -> None:
    for dtype in CPU_DTYPES:
        model = ImageFlow(LUNet(16).to(dtype), SHAPE)
        assert (model.device, model.dtype) == (model.flow.device, model.flow.dtype) == (torch.device("cpu"), dtype)
    assert model.to("meta").device == torch.device("meta")


# Samples


@pytest.mark.parametrize("margin", [1e-6, (0.05, 0.0), 0.0], ids=str)
@torch.no_grad()
def test_postprocess_undoes_preprocess(margin: float | tuple[float, float]) -> None:
    images = random_images(200)
    for dtype in CPU_DTYPES:
        flow = ImageFlow(LUNet(16).to(dtype), SHAPE, margin)
        assert torch.equal(flow.postprocess(flow.preprocess(images, seeded())[0]), images)


@torch.no_grad()
def test_samples_are_8_bit_images(flow: ImageFlow) -> None:
    images = flow.sample(6, seeded(4))
    assert images.shape == (6, *SHAPE)
    assert images.dtype == torch.uint8
    assert torch.equal(images, flow.sample(6, seeded(4)))
    assert not torch.equal(images, flow.sample(6, seeded(5)))
    assert flow.sample(0).shape == (0, *SHAPE)


@torch.no_grad()
def test_samples_of_a_histogram_have_its_pixels() -> None:
    images = (random_images(4000) > 127).to(torch.uint8) * 200
    flow = ImageFlow(Histogram(16, pseudocount=1e-3), SHAPE, margin=None).eval()
    flow.flow.fit_(flow.preprocess(images, seeded())[0])  # type: ignore[operator]
    draws = flow.sample(4000, seeded(1))
    assert set(draws.unique().tolist()) <= {*range(256)}
    assert (((draws == 0) | (draws == 200)).float().mean()) > 0.999
    assert (draws == 200).float().mean().item() == pytest.approx(0.5, abs=0.01)


# Arguments


def test_channel_dimension_is_optional(flow: ImageFlow) -> None:
    images = random_images(3)
    assert torch.equal(
        flow.bits_per_dim(images[:, 0], generator=seeded()), flow.bits_per_dim(images, generator=seeded())
    )


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (3, 16), (3, 1, 4, 5), (3, 1, 8, 2)], ids=str)
def test_images_of_another_shape_raise(flow: ImageFlow, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images have shape .*this flow takes"):
        flow.bits_per_dim(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool], ids=str)
def test_images_of_another_dtype_raise(flow: ImageFlow, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"8-bit images have dtype torch\.uint8"):
        flow.bits_per_dim(torch.zeros(3, *SHAPE).to(dtype))


def test_flow_of_another_width_raises() -> None:
    with pytest.raises(ValueError, match=r"an image of shape \(1, 4, 5\) has 20 values, not 16"):
        ImageFlow(LUNet(16), (1, 4, 5))


@pytest.mark.parametrize("margin", [-0.1, 0.5, (0.1, -1e-9), math.nan], ids=str)
def test_margin_out_of_range_raises(margin: float | tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="margin is"):
        ImageFlow(LUNet(16), SHAPE, margin)


def test_bad_draws_and_bound_raise(flow: ImageFlow) -> None:
    with pytest.raises(ValueError, match="draws is 0"):
        flow.bits_per_dim(random_images(1), draws=0)
    with pytest.raises(ValueError, match="bound is 'max'"):
        flow.bits_per_dim(random_images(1), bound="max")  # type: ignore[arg-type]


def test_half_precision_flow_raises() -> None:
    with pytest.raises(TypeError, match=r"dtype is torch\.bfloat16"):
        ImageFlow(LUNet(16).bfloat16(), SHAPE).bits_per_dim(random_images(1))


# Fit


@torch.no_grad()
def test_gaussian_in_bits_agrees_with_its_entropy() -> None:
    """A Gaussian in logit space has a likelihood of its differential entropy and the Jacobian."""
    latents = 0.4 * correlated(20_000, 4)
    latents = (latents - latents.mean(0)) / 2
    images = ((latents.sigmoid()) * 256).floor().to(torch.uint8).reshape(-1, 1, 2, 2)
    flow = ImageFlow(Gaussian(4).double(), (1, 2, 2), 1e-6).eval()
    logits, log_det = flow.preprocess(images, seeded())
    flow.flow.fit_(logits)  # type: ignore[operator]
    entropy = 0.5 * (4 * math.log(2 * math.pi * math.e) + logits.T.cov(correction=0).logdet())
    expected = 8 + (entropy - log_det.mean()) / (4 * math.log(2))
    torch.testing.assert_close(flow.bits_per_dim(images, generator=seeded()).mean(), expected, rtol=1e-10, atol=0)


# Diagnostics


@pytest.mark.parametrize("name", FLOWS)
def test_diagnostics_count_the_pixels(name: str) -> None:
    flow, _ = copy_with_rows(FLOWS[name])
    image_flow = ImageFlow(flow, (1, 1, flow.features), None if isinstance(flow, Histogram) else 0.05).eval()
    images = torch.randint(256, (40, 1, 1, flow.features), generator=seeded(), dtype=torch.uint8)
    diagnostics = image_flow.diagnostics(images)
    assert diagnostics.pixels_exact == diagnostics.pixels_within_one == 1
    assert diagnostics.layers == flow.diagnostics(image_flow.preprocess(images, seeded())[0]).layers


def test_a_flow_with_a_density_of_its_own_is_scored_by_it() -> None:
    class Laplace(LUNet, kind="laplace-of-this-test"):
        def log_prob(self, x: Tensor) -> Tensor:
            z, log_det = self(x)
            return -(z.abs() + math.log(2)).sum(1) + log_det

    model = ImageFlow(Laplace(16), (1, 4, 4)).eval()
    plain = ImageFlow(LUNet(16), (1, 4, 4)).eval()
    plain.flow.load_state_dict(model.flow.state_dict())
    images = torch.randint(256, (5, 4, 4), dtype=torch.uint8, generator=seeded())
    bits = model.score(images, seeded(1)).bits
    assert torch.equal(bits, model.bits_per_dim(images, generator=seeded(1)))
    assert not torch.equal(bits, plain.score(images, seeded(1)).bits)
