"""Tests of the statistics that give the evidence for the claims."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from claim_subjects import CLAIMS, LAPTOP, PAPER, subject, timed, verdict

from pipeline.measuring.record import Determinant
from pipeline.results.claims import CLAIMS as CLAIMS_FILE
from pipeline.results.claims import load_claims
from pipeline.results.evidence import STATISTICS, Subject
from pipeline.results.verdicts import judge


def test_steps_of_different_batches_are_compared_per_image() -> None:
    lunet, realnvp = timed("cuda", 2.0, batch=256), timed("cuda", 12.0, batch=64)
    result, sentence = verdict("step", PAPER, lunet=lunet, realnvp=realnvp)
    assert (result, "24 times" in sentence) == ("replicated", True)


def determined(diagonal: float, dense: float, widths: list[int]) -> Subject:
    """Determinant times that follow two power laws, after a flat start at small widths."""
    timings = Determinant(
        widths=widths,
        diagonal_ms=[[1e-3 * max(width, 256) ** diagonal] * 3 for width in widths],
        slogdet_ms=[[1e-6 * max(width, 256) ** dense] * 3 for width in widths],
    )
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


def test_a_claim_on_the_figures_of_a_recipe_needs_nothing_but_its_section_in_the_file(tmp_path: Path) -> None:
    text = CLAIMS_FILE.read_text(encoding="utf-8")
    text += """
  - id: classification
    title: The classes are told apart
    words: none
    source: none
    needs: laptop
    compares: [realnvp]
    statistic: {kind: figures}
    measure: The accuracy and the cost.
    evidence:
      accuracy: {label: accuracy, unit: "", metric: classification_accuracy}
      cost: {label: cost, unit: "", times: [sampling_large_ms, density_large_ms]}
    replicated: {accuracy: {at_least: 0.9}, cost: {at_most: 3}}
    not_replicated: {accuracy: {at_most: 0.5}}
    sentence: "The accuracy is {accuracy} at {cost} times the cost."
    why: none
"""
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    claim = load_claims(path).claims[-1]
    good = judge(claim, {"mnist": LAPTOP}, {"mnist": {"realnvp": subject(classification_accuracy=[0.95, 0.95])}})
    assert (good["verdict"], good["datasets"][0]["sentence"]) == (
        "replicated",
        "The accuracy is 0.950 at 1.91 times the cost.",
    )
    none = judge(claim, {"mnist": LAPTOP}, {"mnist": {"realnvp": subject()}})
    assert none["datasets"][0]["sentence"] == "There is no figure for classification_accuracy."
