"""Tests of the statistics that give the evidence for the claims."""

from __future__ import annotations

from dataclasses import replace

from claim_subjects import CLAIMS, LAPTOP, PAPER, subject, timed, verdict

from pipeline.results.evidence import STATISTICS, Subject


def test_steps_of_different_batches_are_compared_per_image() -> None:
    lunet, realnvp = timed("cuda", 2.0, batch=256), timed("cuda", 12.0, batch=64)
    result, sentence = verdict("step", PAPER, lunet=lunet, realnvp=realnvp)
    assert (result, "24 times" in sentence) == ("replicated", True)


def determined(diagonal: float, dense: float, widths: list[int]) -> Subject:
    """Determinant times that follow two power laws, after a flat start at small widths."""
    timings = {
        "widths": widths,
        "diagonal_ms": [[1e-3 * max(width, 256) ** diagonal] * 3 for width in widths],
        "slogdet_ms": [[1e-6 * max(width, 256) ** dense] * 3 for width in widths],
    }
    return replace(subject(), determinant=timings)


def test_the_determinant_is_judged_by_its_larger_widths() -> None:
    widths = [32, 64, 128, 256, 512, 1024, 2048]
    result, sentence = verdict("determinant", LAPTOP, lunet=determined(0.9, 2.6, widths))
    assert result == "replicated"
    assert "0.900 for the diagonal and 2.60 for a dense" in sentence
    assert verdict("determinant", LAPTOP, lunet=determined(2.0, 2.6, widths))[0] == "partly"
    assert verdict("determinant", LAPTOP, lunet=determined(2.6, 2.5, widths))[0] == "not_replicated"
    assert verdict("determinant", LAPTOP, lunet=determined(0.9, 2.6, [64, 128]))[0] == "not_tested"


def test_training_and_latents() -> None:
    moments = {"latent_mean": 0.01, "latent_variance": 1.02, "latent_variance_min": 0.7, "latent_variance_max": 1.6}
    moments["latent_radius_distance"] = 0.05
    assert verdict("likelihood", LAPTOP, lunet=subject(holdout_improvement=0.3, **moments))[0] == "replicated"
    assert verdict("likelihood", LAPTOP, lunet=subject(holdout_improvement=-0.1, **moments))[0] == "not_replicated"
    for off in ({"latent_variance_max": 40.0}, {"latent_radius_distance": 0.3}):
        assert verdict("likelihood", LAPTOP, lunet=subject(holdout_improvement=0.3, **(moments | off)))[0] == "partly"


def test_every_kind_of_statistic_is_used() -> None:
    assert {claim.statistic.kind for claim in CLAIMS.values()} == set(STATISTICS)
