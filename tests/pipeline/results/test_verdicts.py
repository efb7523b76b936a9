"""Tests of the verdicts: evidence, each rule at its bounds, the effect of scale, and the printed figures converted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from claim_subjects import CLAIMS, LAPTOP, PAPER, subject, timed, verdict
from small_trainings import CPU, recipe_of

from lunet import load_flow
from pipeline.core.dataset import Dataset
from pipeline.core.params import Evaluate
from pipeline.evaluation.record import Likelihood
from pipeline.evaluation.scores import evaluate
from pipeline.measuring.record import Determinant
from pipeline.presets.merged import load_preset
from pipeline.results.claims import CLAIMS as CLAIMS_FILE
from pipeline.results.claims import LABELS, Claim, load_claims
from pipeline.results.statistics import Estimate
from pipeline.results.verdicts import (
    STATISTICS,
    Evidence,
    Scale,
    Subject,
    as_trained,
    converted,
    judge,
    rule_in_words,
    verdict_of,
)
from pipeline.train import train
from pipeline.training.models import groups

# Evidence


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


# Verdicts


def test_the_paper_s_ten_claims_come_first_in_its_order() -> None:
    assert list(CLAIMS)[:10] == [
        "memory", "epochs", "nll", "step", "density", "sampling", "inverse", "determinant", "likelihood", "samples",
    ]  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_no_rule_says_both(claim: Claim) -> None:
    """Some bound of one side must exclude a bound of the other, except at the ends."""
    for name, bounds in claim.replicated.items():
        opposite = claim.not_replicated.get(name)
        if opposite is None:
            continue
        disjoint = (
            bounds.at_least is not None and opposite.at_most is not None and opposite.at_most <= bounds.at_least
        ) or (bounds.at_most is not None and opposite.at_least is not None and bounds.at_most <= opposite.at_least)
        if disjoint:
            return
    pytest.fail(f"{claim.id} may be replicated and not replicated at once")


def test_rules_in_words_come_from_the_bounds() -> None:
    assert "LU-Net minus RealNVP ≤ −0.05 bits/dim" in rule_in_words(CLAIMS["nll"])
    assert "≥ 23.5" in rule_in_words(CLAIMS["step"])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.2, -0.05, "replicated"),
        (-0.2, -0.049, "partly"),
        (-0.01, 0.01, "partly"),
        (0.049, 0.2, "partly"),
        (0.05, 0.2, "not_replicated"),
    ],
)
def test_the_whole_interval_must_lie_within_the_bound(low: float, high: float, expected: str) -> None:
    evidence = {"difference": Estimate((low + high) / 2, low, high, 3)}
    assert verdict_of(CLAIMS["nll"], evidence) == expected


def test_one_of_two_conditions_is_partly() -> None:
    def evidence(lost: float, cost: float) -> Evidence:
        return {"lost": Estimate(lost, None, None, 1), "cost": Estimate(cost, None, None, 1)}

    assert verdict_of(CLAIMS["inverse"], evidence(0, 2)) == "replicated"
    assert verdict_of(CLAIMS["inverse"], evidence(0, 50)) == "partly"
    assert verdict_of(CLAIMS["inverse"], evidence(5000, 2)) == "partly"
    assert verdict_of(CLAIMS["inverse"], evidence(5000, 50)) == "not_replicated"


def test_the_honest_currency_decides_against_the_poster_s() -> None:
    lunet = subject(bits_per_dim=1.85, poster_bits_per_pixel=1.84)
    realnvp = subject(bits_per_dim=1.45, poster_bits_per_pixel=7.9)
    result, sentence = verdict("nll", LAPTOP, lunet=lunet, realnvp=realnvp)
    assert result == "not_replicated"
    assert "1.85 and RealNVP 1.45 bits/dim, a difference of 0.400" in sentence
    judged = judge(CLAIMS["nll"], {"mnist": LAPTOP}, {"mnist": {"lunet": lunet, "realnvp": realnvp}})
    beside = {item["name"]: item["value"] for item in judged["datasets"][0]["evidence"]}
    assert (beside["beside_lunet"], beside["beside_realnvp"]) == (1.84, 7.9)


def test_a_tie_is_partly_at_the_paper_s_scale() -> None:
    model = subject("cuda", bits_per_dim=1.5)
    assert verdict("nll", PAPER, lunet=model, realnvp=model)[0] == "partly"


def test_seeds_are_paired() -> None:
    """Seeds differ by far more than the models: unpaired, the interval would contain zero."""
    lunet, realnvp = subject("cuda", bits_per_dim=[1.0, 2.0, 3.0]), subject("cuda", bits_per_dim=[1.2, 2.21, 3.19])
    assert verdict("nll", PAPER, lunet=lunet, realnvp=realnvp)[0] == "replicated"
    only_two = replace(realnvp, metrics={"bits_per_dim": {1: 2.21, 2: 3.19}})
    judged = judge(CLAIMS["nll"], {"mnist": PAPER}, {"mnist": {"lunet": lunet, "realnvp": only_two}})
    assert {item["n"] for item in judged["datasets"][0]["evidence"]} == {2}


def evidence_of(claim: str, scale: Scale, **subjects: Subject) -> dict[str, Any]:
    """The evidence on one data set, by name."""
    judged = judge(CLAIMS[claim], {"mnist": scale}, {"mnist": subjects})
    return {item["name"]: item for item in judged["datasets"][0]["evidence"]}


@pytest.mark.parametrize(
    ("lunet", "realnvp", "below"),
    [
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], 1.0),
        ([1.3, 1.4], [1.0, 1.1], 0.0),
        ([1.0, 1.3], [1.1, 1.4], 0.75),
        ([1.2, 1.2, 1.2], [1.2, 1.2, 1.2], 0.5),
    ],
)
def test_several_seeds_say_how_often_one_is_below_the_other(
    lunet: list[float], realnvp: list[float], below: float
) -> None:
    evidence = evidence_of("nll", LAPTOP, lunet=subject(bits_per_dim=lunet), realnvp=subject(bits_per_dim=realnvp))
    assert evidence["below"] == {
        "name": "below",
        "label": "P(LU-Net below RealNVP) over seeds, Mann–Whitney U / (n m)",
        "unit": "",
        "value": below,
        "low": None,
        "high": None,
        "n": len(lunet),
    }


def test_one_seed_says_that_it_is_one() -> None:
    evidence = evidence_of("nll", LAPTOP, lunet=subject(bits_per_dim=1.8), realnvp=subject(bits_per_dim=1.4))
    assert (evidence["below"]["value"], evidence["below"]["n"]) == (None, 1)
    assert (evidence["difference"]["low"], evidence["difference"]["n"]) == (None, 1)
    evidence = evidence_of("epochs", LAPTOP, lunet=subject(best_epoch=40.0), realnvp=subject(best_epoch=[90.0, 100.0]))
    assert (evidence["below"]["value"], evidence["below"]["n"]) == (None, 1)
    assert (evidence["ratio"]["low"], evidence["ratio"]["n"]) == (None, 1)


def test_a_diverged_seed_leaves_the_others_in_pairs() -> None:
    """Seed 1 of RealNVP diverged: its partner does not count, in the difference or in the probability."""
    lunet = subject("cuda", bits_per_dim=[1.0, 9.0, 1.2])
    realnvp = Subject({"bits_per_dim": {0: 1.3, 2: 1.4}}, {}, None, "all", frozenset({"cuda"}), frozenset({"aa"}))
    realnvp = replace(realnvp, trouble="seed 1 of realnvp: diverged")
    evidence = evidence_of("nll", PAPER, lunet=lunet, realnvp=realnvp)
    assert (evidence["lunet"]["value"], evidence["lunet"]["n"]) == (1.1, 2)
    assert (evidence["difference"]["value"], evidence["below"]["value"], evidence["below"]["n"]) == (-0.25, 1.0, 2)
    left = replace(realnvp, metrics={"bits_per_dim": {1: 1.3}})
    evidence = evidence_of("nll", PAPER, lunet=replace(lunet, metrics={"bits_per_dim": {1: 1.1}}), realnvp=left)
    assert (evidence["below"]["value"], evidence["below"]["n"]) == (None, 1)


def test_seeds_that_have_no_partner_are_not_tested() -> None:
    lunet = replace(subject(), metrics={"bits_per_dim": {0: 1.8}})
    realnvp = replace(subject(), metrics={"bits_per_dim": {1: 1.4}})
    result, sentence = verdict("nll", LAPTOP, lunet=lunet, realnvp=realnvp)
    assert (result, sentence) == ("not_tested", "The recipes have no finished seed in common.")
    assert evidence_of("nll", LAPTOP, lunet=lunet, realnvp=realnvp) == {}


def test_ties_over_several_seeds_have_a_point_for_an_interval() -> None:
    model = subject("cuda", bits_per_dim=[1.5, 1.5, 1.5])
    assert verdict("nll", PAPER, lunet=model, realnvp=model)[0] == "partly"
    found = evidence_of("nll", PAPER, lunet=model, realnvp=model)
    assert (found["difference"]["low"], found["difference"]["value"], found["difference"]["high"]) == (0, 0, 0)
    epochs = subject("cuda", best_epoch=[40.0, 40.0])
    assert verdict("epochs", PAPER, lunet=epochs, realnvp=epochs)[0] == "not_replicated"
    assert evidence_of("epochs", PAPER, lunet=epochs, realnvp=epochs)["below"]["value"] == 0.5


def test_repetitions_of_a_time_are_no_seeds() -> None:
    assert "below" not in evidence_of("step", PAPER, lunet=timed("cuda", 1.0), realnvp=timed("cuda", 50.0))


def test_a_figure_that_is_not_finite_is_an_error_and_never_a_verdict() -> None:
    broken = subject(bits_per_dim=[1.0, float("nan")])
    with pytest.raises(ValueError, match="finite"):
        verdict("nll", LAPTOP, lunet=broken, realnvp=subject(bits_per_dim=[1.0, 1.1]))


def test_a_small_baseline_can_refute_but_not_confirm() -> None:
    good, bad = subject(bits_per_dim=1.2), subject(bits_per_dim=1.6)
    assert verdict("nll", LAPTOP, lunet=bad, realnvp=good)[0] == "not_replicated"
    result, sentence = verdict("nll", LAPTOP, lunet=good, realnvp=bad)
    assert result == "not_tested_at_this_scale"
    assert "cannot confirm" in sentence
    good, bad = subject("cuda", bits_per_dim=1.2), subject("cuda", bits_per_dim=1.6)
    assert verdict("nll", PAPER, lunet=good, realnvp=bad)[0] == "replicated"


@pytest.mark.parametrize(
    ("scale", "device", "expected"),
    [
        (PAPER, "cuda", "replicated"),
        (PAPER, "cpu", "not_tested_at_this_scale"),
        (LAPTOP, "cuda", "not_tested_at_this_scale"),
        (replace(PAPER, as_in_paper=frozenset({"lunet"})), "cuda", "not_tested_at_this_scale"),
        (replace(PAPER, subset=True), "cuda", "not_tested_at_this_scale"),
    ],
)
def test_times_are_decided_at_the_paper_s_scale_only(scale: Scale, device: str, expected: str) -> None:
    result, sentence = verdict("step", scale, lunet=timed(device, 1.0), realnvp=timed(device, 50.0))
    assert result == expected
    assert "50.0 times as long" in sentence or "50 times as long" in sentence


@pytest.mark.parametrize(
    ("ratio", "way"), [(50.0, "would hold here"), (5.0, "would hold in part here"), (0.5, "would not hold here")]
)
def test_a_figure_that_decides_nothing_says_what_its_bounds_would_give(ratio: float, way: str) -> None:
    models = {"lunet": timed("cpu", 1.0), "realnvp": timed("cpu", ratio)}
    assert way in verdict("step", LAPTOP, **models)[1]
    assert "bounds" not in verdict("step", replace(LAPTOP, preset="smoke"), **models)[1]


@pytest.mark.parametrize("scale", [replace(LAPTOP, preset="smoke"), replace(LAPTOP, subset=True)])
def test_smoke_and_subsets_decide_nothing(scale: Scale) -> None:
    model = subject(pixels_lost=0.0)
    assert verdict("inverse", LAPTOP, lunet=model)[0] == "replicated"
    assert verdict("inverse", scale, lunet=model)[0] == "not_tested_at_this_scale"


@pytest.mark.parametrize(("realnvp", "expected"), [(30.0, "replicated"), (5.0, "partly"), (1.05, "not_replicated")])
def test_half_the_poster_s_ratio_and_a_tie(realnvp: float, expected: str) -> None:
    assert verdict("step", PAPER, lunet=timed("cuda", 1.0), realnvp=timed("cuda", realnvp))[0] == expected


def test_only_like_is_compared_with_like() -> None:
    one, other = subject(bits_per_dim=1.8), subject("cuda", bits_per_dim=1.4)
    assert verdict("nll", LAPTOP, lunet=one, realnvp=other)[0] == "not_comparable"
    each = replace(subject(bits_per_dim=1.4), classes="each")
    result, sentence = verdict("nll", LAPTOP, lunet=one, realnvp=each)
    assert (result, "classes" in sentence) == ("not_comparable", True)
    result, sentence = verdict("step", PAPER, lunet=timed("cuda", 1.0), realnvp=timed("cuda", 50.0, machine="bb"))
    assert (result, "different machines" in sentence) == ("not_comparable", True)


def test_missing_recipes_and_failed_ones_are_not_tested() -> None:
    result, sentence = verdict("nll", LAPTOP, lunet=subject(bits_per_dim=1.8))
    assert (result, sentence) == ("not_tested", "The grid has no realnvp.")
    failed = Subject(classes="all", trouble="seed 0 of realnvp: diverged")
    result, sentence = verdict("nll", LAPTOP, lunet=subject(bits_per_dim=1.8), realnvp=failed)
    assert (result, sentence) == ("not_tested", "Seed 0 of realnvp: diverged.")


def test_samples_need_one_model_a_class() -> None:
    assert verdict("samples", LAPTOP, lunet=subject())[0] == "not_tested"
    for accuracy, expected in ((0.93, "replicated"), (0.6, "partly"), (0.3, "not_replicated")):
        each = replace(subject(sample_class_accuracy=accuracy), classes="each")
        assert verdict("samples", LAPTOP, lunet=each)[0] == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0.0, 0.0, "replicated"),
        (5e5, 5e5, "partly"),
        (0.0, 5e5, "partly"),
        (0.0, None, "replicated"),
        (None, None, "not_tested"),
    ],
)
def test_overall(first: float | None, second: float | None, expected: str) -> None:
    results = {
        name: {"lunet": Subject(trouble="diverged") if lost is None else subject(pixels_lost=lost)}
        for name, lost in (("mnist", first), ("fashion_mnist", second))
    }
    found = judge(CLAIMS["inverse"], dict.fromkeys(results, LAPTOP), results)
    assert found["verdict"] == expected
    assert found["label"] in LABELS.values()


@pytest.mark.parametrize("name", ["lunet", "realnvp", "lunet_released", "realnvp_released"])
@pytest.mark.parametrize("classes", ["all", "each"])
def test_a_printed_figure_converts_to_the_honest_one(
    smoke_values: Any, dataset: Dataset, tmp_path: Path, name: str, classes: str
) -> None:
    recipe = recipe_of(smoke_values, name, classes=classes)
    train(dataset, recipe, 0, CPU, tmp_path, name)
    models = {key: load_flow(tmp_path / key) for key in groups(dataset, recipe)}
    settings = smoke_values["evaluate"] | {"draws": 100, "sample_rows": 1, "sample_columns": 1}
    evaluation, _ = evaluate(models, dataset, recipe, Evaluate.model_validate(settings), 0)
    per_class = {label: Likelihood.model_validate(likelihood) for label, likelihood in evaluation["per_class"].items()}
    assert len(per_class) == 2
    # What is left is the noise of the logit's slopes: 100 draws of 6,400 pixels.
    assert converted(per_class, recipe, dataset) == pytest.approx(evaluation["test"]["bits_per_dim"]["mean"], abs=0.003)
    assert evaluation["test"]["poster_bits_per_pixel"] != pytest.approx(
        evaluation["test"]["bits_per_dim"]["mean"], abs=0.3
    )


def test_how_a_step_is_computed_makes_no_other_recipe() -> None:
    recipe = load_preset("paper").recipe("realnvp")
    assert recipe.training is not None
    ways = {"precision": "bfloat16", "capture": True, "compile": True}
    faster = recipe.model_copy(update={"training": recipe.training.model_copy(update=ways)})
    shorter = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 1.0})})
    assert as_trained(faster) == as_trained(recipe) != as_trained(shorter)
    assert as_trained(load_preset("paper").recipe("gaussian")) == load_preset("paper").recipe("gaussian")
