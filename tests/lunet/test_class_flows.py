from __future__ import annotations

import math

import pytest
import torch
from random_flows import seeded
from torch import Tensor

from lunet import ClassFlows, Histogram, ImageFlow

NAMES = ("left", "right", "dark")


def images(name: str, n: int, seed: int = 0) -> Tensor:
    """4x4 images that are bright on one side or dark, with shape (n, 4, 4)."""
    shade = torch.full((4, 4), 40)
    if name != "dark":
        shade[:, : 2 if name == "left" else None] = 200
        shade[:, :2] = 200 if name == "left" else 40
    noise = torch.randint(-30, 30, (n, 4, 4), generator=seeded(seed))
    return (shade + noise).to(torch.uint8)


@pytest.fixture(scope="module")
def model() -> ClassFlows:
    flows = {}
    for name in NAMES:
        histogram = Histogram(16)
        flows[name] = ImageFlow(histogram, (1, 4, 4), None).eval()
        histogram.fit_(flows[name].preprocess(images(name, 400), seeded())[0])
    return ClassFlows(flows)


def test_images_are_assigned_to_their_class(model: ClassFlows) -> None:
    for index, name in enumerate(NAMES):
        assert (model.classify(images(name, 50, seed=1), generator=seeded()) == index).double().mean() > 0.95


@pytest.mark.parametrize("prior", [None, [0.2, 0.7, 0.1]])
def test_classification_is_bayes_rule(model: ClassFlows, prior: list[float] | None) -> None:
    batch = torch.cat([images(name, 5, seed=2) for name in NAMES])
    bits = model.bits_per_dim(batch, generator=seeded())
    assert bits.shape == (15, 3)
    weights = torch.tensor(prior or [1 / 3] * 3, dtype=torch.float64)
    expected = (weights.log() - bits.double() * 16 * math.log(2)).softmax(1)
    torch.testing.assert_close(model.posterior(batch, generator=seeded(), prior=prior), expected)
    predicted = model.classify(batch, generator=seeded(), prior=prior)
    assert torch.equal(predicted, expected.argmax(1))


@pytest.mark.parametrize("prior", [None, [0.5, 0.0, 0.5]])
def test_the_bits_of_a_mixture_are_those_of_the_mean_density(model: ClassFlows, prior: list[float] | None) -> None:
    batch = torch.cat([images(name, 5, seed=2) for name in NAMES])
    bits = model.bits_per_dim(batch, generator=seeded()).double()
    weights = torch.tensor(prior or [1 / 3] * 3, dtype=torch.float64)
    expected = ((-16 * bits).exp2() @ weights).log2() / -16
    torch.testing.assert_close(model.mixture_bits_per_dim(batch, generator=seeded(), prior=prior), expected)
    alone = ClassFlows({"left": model["left"]})
    torch.testing.assert_close(alone.mixture_bits_per_dim(batch, generator=seeded()), bits[:, 0])


def test_device_and_dtype_are_those_of_the_flows(model: ClassFlows) -> None:
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)


def test_prior_decides_between_equal_flows(model: ClassFlows) -> None:
    equal_flows = ClassFlows({"a": model["left"], "b": model["left"]})
    batch = images("left", 20)
    assert (equal_flows.classify(batch, draws=200, generator=seeded(), prior=[0.0, 1.0]) == 1).all()
    assert (equal_flows.classify(batch, draws=200, generator=seeded(), prior=[1.0, 0.0]) == 0).all()


def test_samples_are_of_the_requested_class(model: ClassFlows) -> None:
    samples = model.sample("right", 30, seeded())
    assert samples.shape == (30, 1, 4, 4)
    assert (model.classify(samples, generator=seeded()) == 1).double().mean() > 0.9


@pytest.mark.parametrize("prior", [[1.0], [0.5, 0.6, -0.1], [0.5, 0.5, 0.5]])
def test_bad_prior_raises(model: ClassFlows, prior: list[float]) -> None:
    with pytest.raises(ValueError, match="a probability for each of the 3 classes"):
        model.classify(images("left", 2), prior=prior)


def test_unknown_class_raises_and_lists_the_classes(model: ClassFlows) -> None:
    with pytest.raises(KeyError, match="left, right, dark"):
        model.sample("up", 1)


def test_no_flows_and_several_shapes_raise() -> None:
    with pytest.raises(ValueError, match="flows is empty"):
        ClassFlows({})
    flows = {"a": ImageFlow(Histogram(16), (1, 4, 4), None), "b": ImageFlow(Histogram(4), (1, 2, 2), None)}
    with pytest.raises(ValueError, match="several shapes"):
        ClassFlows(flows)


@pytest.mark.parametrize("name", ["train", "type", "0.5", "a/b"])
def test_a_class_may_have_any_name(name: str) -> None:
    flows = ClassFlows({name: ImageFlow(Histogram(16), (1, 4, 4), None)})
    assert flows.sample(name, 2).shape == (2, 1, 4, 4)
