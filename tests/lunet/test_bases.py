from __future__ import annotations

import math

import pytest
import torch
from random_flows import seeded
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from lunet import ClassGaussians

FEATURES, CLASSES = 5, 3
SHRINKAGES = (0.0, 0.3, 1.0)


def sample(n: int, generator: int = 0) -> tuple[Tensor, Tensor]:
    """Latents of three classes of different sizes, means and covariances, and their labels."""
    noise = seeded(generator)
    labels = torch.randint(6, (n,), generator=noise).div(2.5).long().clamp(max=CLASSES - 1)
    shapes = torch.randn(CLASSES, FEATURES, FEATURES, generator=seeded(99), dtype=torch.float64)
    z = torch.randn(n, FEATURES, generator=noise, dtype=torch.float64)
    return (shapes[labels] @ z[:, :, None])[:, :, 0] + 2.0 * labels[:, None], labels


@pytest.fixture
def fitted() -> tuple[ClassGaussians, float]:
    base = ClassGaussians(FEATURES, CLASSES).double()
    return base, base.fit_(*sample(4000), sample(500, 1)[0], SHRINKAGES)


def test_log_density_is_that_of_the_shrunk_mixture() -> None:
    z, labels = sample(4000)
    base = ClassGaussians(FEATURES, CLASSES).double()
    assert base.fit_(z, labels, z[:10], [0.3]) == 0.3
    parts = [z[labels == label] for label in range(CLASSES)]
    weights = torch.tensor([len(part) / len(z) for part in parts]).double()
    covariances = torch.stack([part.T.cov(correction=0) for part in parts])
    pooled = (weights[:, None, None] * covariances).sum(0)
    reference = MixtureSameFamily(
        Categorical(weights),
        MultivariateNormal(torch.stack([part.mean(0) for part in parts]), 0.7 * covariances + 0.3 * pooled),
    )
    fresh = sample(50, 2)[0]
    torch.testing.assert_close(base.log_prob(fresh), reference.log_prob(fresh), rtol=1e-6, atol=1e-6)


def test_the_shrinkage_is_that_of_the_highest_held_out_density() -> None:
    z, labels = sample(60)  # few for three covariances
    heldout = sample(2000, 1)[0]
    base = ClassGaussians(FEATURES, CLASSES).double()
    scores = {}
    for shrinkage in SHRINKAGES:
        base.fit_(z, labels, heldout, [shrinkage])
        scores[shrinkage] = float(base.log_prob(heldout).mean())
    assert len(set(scores.values())) == len(SHRINKAGES)
    assert base.fit_(z, labels, heldout, SHRINKAGES) == max(scores, key=lambda shrinkage: scores[shrinkage])
    assert float(base.log_prob(heldout).mean()) == max(scores.values())


def test_a_shrinkage_with_a_singular_covariance_is_left_out() -> None:
    z, labels = sample(300)
    labels[:] = labels.clamp(max=1)
    labels[:2] = 2  # a covariance of rank 1
    base = ClassGaussians(FEATURES, CLASSES).double()
    assert base.fit_(z, labels, z, [0.0, 0.5]) == 0.5
    with pytest.raises(ValueError, match="covariance is singular"):
        base.fit_(z, labels, z, [0.0])


def test_samples_have_the_moments_and_the_shares_of_the_classes(fitted: tuple[ClassGaussians, float]) -> None:
    base, _ = fitted
    weights, means = base.log_weights.exp(), torch.stack([base[label].mean for label in range(CLASSES)])
    drawn = base.sample(40_000, seeded(3))
    # Five standard errors.
    assert ((drawn.mean(0) - weights @ means).abs() < 5 * drawn.std(0) / 200).all()
    of_one = base[1].sample(10_000, seeded(4))
    assert ((of_one.mean(0) - base[1].mean).abs() < 5 * of_one.std(0) / 100).all()
    whitened = base[1](of_one).z.T.cov()
    torch.testing.assert_close(whitened, torch.eye(FEATURES).double(), rtol=0, atol=0.07)
    assert torch.equal(base.sample(7, seeded(5)), base.sample(7, seeded(5)))
    assert base.sample(0, seeded(5)).shape == (0, FEATURES)


def test_it_is_saved_with_its_state(fitted: tuple[ClassGaussians, float]) -> None:
    base, _ = fitted
    other = ClassGaussians(FEATURES, CLASSES).double()
    other.load_state_dict(base.state_dict())
    z = sample(5)[0]
    assert torch.equal(other.log_prob(z), base.log_prob(z))
    assert other.float().dtype == torch.float32


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="classes is 0; at least 1"):
        ClassGaussians(FEATURES, 0)
    z, labels = sample(50)
    for wrong in (labels.clamp(max=1), labels + 1):
        with pytest.raises(ValueError, match="by class; each of 3 needs some"):
            ClassGaussians(FEATURES, CLASSES).double().fit_(z, wrong, z, [0.5])
    base = ClassGaussians(FEATURES, CLASSES).double()
    with pytest.raises(ValueError, match="shrinkages is empty"):
        base.fit_(z, labels, z, [])
    broken = z.clone()
    broken[0, 0] = math.nan
    with pytest.raises(ValueError, match="x has values that are not finite"):
        base.fit_(broken, labels, z, [0.5])
    with pytest.raises(ValueError, match="heldout has values that are not finite"):
        base.fit_(z, labels, broken, [0.5])
