"""Tests of the verdicts: each rule at its bounds, what settings and the scale change, kept runs, and the histories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from claim_examples import EXAMPLES, seeds
from claim_settings import RECORDED, RECORDED_SPREAD, SETTINGS, by_process, by_seed, recorded
from claim_subjects import CLAIMS, LAPTOP, PAPER, determined, evidence_items, subject, timed, verdict
from fake_results import SMALL, Project, parameters

from pipeline.core.params import load_params
from pipeline.presets.merged import load_preset
from pipeline.results.claim_statistics import Evidence
from pipeline.results.claims import CLAIMS as CLAIMS_FILE
from pipeline.results.claims import DECISIONS, LABELS, Claim, load_claims
from pipeline.results.kept import Kept
from pipeline.results.metrics import subjects_of
from pipeline.results.statistics import Estimate
from pipeline.results.subjects import Curve, Subject, Subjects
from pipeline.results.tables import curves_table
from pipeline.results.verdicts import Scale, as_trained, claims_of, judge, judgements, rule_in_words, verdict_of


def test_the_paper_s_ten_claims_have_examples_in_its_order() -> None:
    assert list(CLAIMS) == list(EXAMPLES)


@pytest.mark.parametrize("expected", [*DECISIONS, "undecided"])
@pytest.mark.parametrize("claim", EXAMPLES)
def test_every_rule_reaches_every_verdict(claim: str, expected: str) -> None:
    assert verdict(claim, PAPER, **EXAMPLES[claim][expected])[0] == expected


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("expected", DECISIONS)
@pytest.mark.parametrize("claim", EXAMPLES)
def test_settings_never_flip_a_verdict(claim: str, expected: str, setting: str) -> None:
    changed = {name: SETTINGS[setting](model) for name, model in EXAMPLES[claim][expected].items()}
    assert verdict(claim, PAPER, **changed)[0] in (expected, "undecided")


@pytest.mark.parametrize("setting", RECORDED)
def test_recorded_figures_of_a_setting_never_contradict_each_other(setting: str) -> None:
    """Of one seed each, with a recorded spread; from the identity start LU-Net ends at about the Gaussian."""
    found: dict[str, set[str]] = {}
    for claim in ("nll", "likelihood"):
        runs = [{"mnist": recorded(bits)} for bits in RECORDED[setting].values()]
        spread = {"mnist": {"recorded": RECORDED_SPREAD}}
        found[claim] = {judge(CLAIMS[claim], {"mnist": LAPTOP}, run, spread)["verdict"] for run in runs}
    assert found["nll"] == {"not_replicated"}
    assert found["likelihood"] == ({"replicated", "undecided"} if setting == "start" else {"replicated"})


@pytest.mark.parametrize("claim", ["epochs", "nll", "inverse", "likelihood", "samples"])
@pytest.mark.parametrize("count", [1, 2])
def test_one_seed_or_two_decide_nothing(claim: str, count: int) -> None:
    for expected in DECISIONS:
        changed = {name: by_seed(model, count) for name, model in EXAMPLES[claim][expected].items()}
        result, sentence = verdict(claim, PAPER, **changed)
        assert (result, sentence[-42:]) == ("undecided", " Without an interval this decides nothing.")


def test_one_process_decides_nothing() -> None:
    for claim in ("step", "density", "sampling", "inverse"):
        changed = {name: by_process(model, 1) for name, model in EXAMPLES[claim]["replicated"].items()}
        assert verdict(claim, PAPER, **changed)[0] == "undecided"


# Rules


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
        (-0.2, -0.049, "undecided"),
        (-0.049, 0.049, "partly"),
        (0.0, 0.0, "partly"),
        (0.049, 0.2, "undecided"),
        (0.05, 0.2, "not_replicated"),
        (-0.2, 0.2, "undecided"),
        (None, None, "undecided"),
    ],
)
def test_the_whole_interval_must_lie_on_one_side_of_each_bound(
    low: float | None, high: float | None, expected: str
) -> None:
    assert verdict_of(CLAIMS["nll"], {"difference": Estimate(-0.2, low, high, 3)}) == expected


def test_two_conditions() -> None:
    def evidence(lost: float, cost: float) -> Evidence:
        return {"lost": Estimate(lost, 0.9 * lost, 1.1 * lost, 3), "cost": Estimate(cost, 0.9 * cost, 1.1 * cost, 3)}

    assert verdict_of(CLAIMS["inverse"], evidence(0, 2)) == "replicated"
    assert verdict_of(CLAIMS["inverse"], evidence(0, 50)) == "partly"
    assert verdict_of(CLAIMS["inverse"], evidence(5000, 2)) == "partly"
    assert verdict_of(CLAIMS["inverse"], evidence(5000, 50)) == "not_replicated"
    assert verdict_of(CLAIMS["inverse"], evidence(0, 10)) == "undecided"
    assert verdict_of(CLAIMS["inverse"], evidence(1000, 50)) == "undecided"


def test_half_the_poster_s_ratios_at_its_batch_sizes() -> None:
    """The bound on a step is half of 56.0 / 1.2, at the batch sizes of the paper preset."""
    paper = load_preset("paper")
    sizes = [training.batch_size for name in ("lunet", "realnvp") if (training := paper.recipe(name).training)]
    assert sizes == [256, 128]
    assert CLAIMS["step"].replicated["ratio"].at_least == pytest.approx(56.0 / 1.2 / 2, abs=0.2)
    assert f"{56.0 / 128 / (1.2 / 256):.1f}" in CLAIMS["step"].evidence["per_image"].label


def test_the_honest_currency_decides_against_the_poster_s() -> None:
    lunet = subject(bits_per_dim=seeds(1.85), poster_bits_per_pixel=seeds(1.84))
    realnvp = subject(bits_per_dim=seeds(1.45), poster_bits_per_pixel=seeds(7.9))
    result, sentence = verdict("nll", LAPTOP, lunet=lunet, realnvp=realnvp)
    assert result == "not_replicated"
    assert "1.85 and RealNVP 1.45 bits/dim, a difference of 0.400" in sentence
    beside = evidence_items("nll", LAPTOP, lunet=lunet, realnvp=realnvp)
    assert (beside["beside_lunet"]["value"], beside["beside_realnvp"]["value"]) == (1.84, 7.9)


def test_margins_and_the_mass_outside_the_cube_are_shown() -> None:
    lunet = subject(bits_per_dim=1.5, margin=1e-3, outside_least=0.013, outside_most=0.03)
    evidence = evidence_items("nll", LAPTOP, lunet=lunet, realnvp=subject(bits_per_dim=1.4, margin=1e-6))
    names = ("margin_lunet", "margin_realnvp", "outside_least", "outside_most")
    assert [evidence[name]["value"] for name in names] == [1e-3, 1e-6, 0.013, 0.03]


def test_a_figure_that_is_not_finite_is_an_error_and_never_a_verdict() -> None:
    broken = subject(bits_per_dim=[1.0, float("nan")])
    with pytest.raises(ValueError, match="finite"):
        verdict("nll", LAPTOP, lunet=broken, realnvp=subject(bits_per_dim=[1.0, 1.1]))


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
    interval: over seeds
    sentence: "The accuracy is {accuracy} at {cost} times the cost."
    reason: none
    date: 2026-11-28
"""
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    claim = load_claims(path).claims[-1]
    good = judge(claim, {"mnist": LAPTOP}, {"mnist": {"realnvp": subject(classification_accuracy=[0.95, 0.95, 0.95])}})
    assert (good["verdict"], good["datasets"][0]["sentence"], good["history"]) == (
        "replicated",
        "The accuracy is 0.950 at 2 times the cost.",
        [],
    )
    none = judge(claim, {"mnist": LAPTOP}, {"mnist": {"realnvp": subject()}})
    assert none["datasets"][0]["sentence"] == "There is no figure for the accuracy."


# Scales


def test_a_small_baseline_can_refute_but_not_confirm() -> None:
    for claim in ("nll", "epochs"):
        assert verdict(claim, LAPTOP, **EXAMPLES[claim]["not_replicated"])[0] == "not_replicated"
        for expected in ("replicated", "partly"):
            result, sentence = verdict(claim, LAPTOP, **EXAMPLES[claim][expected])
            assert result == "not_tested_at_this_scale"
            assert "cannot confirm" in sentence
        assert verdict(claim, LAPTOP, **EXAMPLES[claim]["undecided"])[0] == "undecided"


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
    assert "50 times as long" in sentence
    assert "hold" not in sentence


@pytest.mark.parametrize("scale", [replace(LAPTOP, preset="smoke"), replace(LAPTOP, subset=True)])
def test_smoke_and_subsets_decide_nothing(scale: Scale) -> None:
    models = EXAMPLES["inverse"]["replicated"]
    assert verdict("inverse", LAPTOP, **models)[0] == "replicated"
    assert verdict("inverse", scale, **models)[0] == "not_tested_at_this_scale"
    early = replace(subject(), curves={0: {"all": Curve([0.0, 1.0, 2.0], [5.0, 2.0, 1.0])}})
    late = replace(subject(), curves={0: {"all": Curve([0.0, 1.0, 2.0], [6.0, 2.5, 2.0])}})
    assert verdict("epochs", scale, lunet=early, realnvp=late)[0] == "not_tested_at_this_scale"
    small = {"lunet": determined(0.9, 2.6, (256, 512))}
    assert verdict("determinant", LAPTOP, **small)[0] == "undecided"
    if not scale.subset:  # the matrices are those of no data set
        assert verdict("determinant", scale, **small)[0] == "not_tested_at_this_scale"


def test_times_and_memory_need_the_paper_s_large_batch() -> None:
    other = replace(PAPER, large_batch_as_in_paper=False)
    for claim in ("memory", "step", "density", "sampling"):
        assert verdict(claim, other, **EXAMPLES[claim]["replicated"])[0] == "not_tested_at_this_scale"
    for claim in ("epochs", "nll", "inverse"):
        assert verdict(claim, other, **EXAMPLES[claim]["replicated"])[0] == "replicated"


def test_only_like_is_compared_with_like() -> None:
    one, other = subject(bits_per_dim=1.8), subject("cuda", bits_per_dim=1.4)
    assert verdict("nll", LAPTOP, lunet=one, realnvp=other)[0] == "not_comparable"
    each = replace(subject(bits_per_dim=1.4), classes="each")
    result, sentence = verdict("nll", LAPTOP, lunet=one, realnvp=each)
    assert (result, "classes" in sentence) == ("not_comparable", True)
    result, sentence = verdict("step", PAPER, lunet=timed("cuda", 1.0), realnvp=timed("cuda", 50.0, machine="bb"))
    assert (result, "different machines" in sentence) == ("not_comparable", True)


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        ("memory", "memory_training_mib was not measured"),
        ("epochs", "the recipes have no finished seed in common"),
        ("nll", "the recipes have no finished seed in common"),
        ("step", "step_ms was not measured"),
        ("inverse", "there is no figure for the pixels not restored exactly"),
        ("determinant", "the determinant's cost was not measured"),
        ("likelihood", "there is no figure for the gain over the closed-form Gaussian"),
        ("samples", "there are no samples of each class from a fitted Gaussian"),
    ],
)
def test_what_an_older_run_lacks_is_not_tested_and_named(claim: str, sentence: str) -> None:
    result, found = verdict(claim, PAPER, lunet=subject("cuda"), realnvp=subject("cuda"))
    assert (result, found) == ("not_tested", f"{sentence[0].upper()}{sentence[1:]}.")


def test_missing_recipes_and_failed_ones_are_not_tested() -> None:
    result, sentence = verdict("nll", LAPTOP, lunet=subject(bits_per_dim=1.8))
    assert (result, sentence) == ("not_tested", "The grid has no realnvp.")
    failed = Subject(classes="all", trouble="seed 0 of realnvp: diverged")
    for claim in ("nll", "epochs", "step", "sampling"):
        result, sentence = verdict(claim, LAPTOP, lunet=timed("cpu", 1.8), realnvp=failed)
        assert (result, sentence) == ("not_tested", "Seed 0 of realnvp: diverged.")


# Several data sets


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("replicated", "replicated", "replicated"),
        ("partly", "partly", "partly"),
        ("replicated", "partly", "partly"),
        ("replicated", "not_replicated", "partly"),
        ("replicated", None, "undecided"),
        ("replicated", "undecided", "undecided"),
        ("partly", "undecided", "partly"),
        ("partly", None, "partly"),
        ("undecided", None, "undecided"),
        (None, None, "not_tested"),
    ],
)
def test_overall(first: str | None, second: str | None, expected: str) -> None:
    diverged = {"lunet": Subject(trouble="diverged")}
    results = {
        dataset: EXAMPLES["inverse"][example] if example else diverged
        for dataset, example in (("mnist", first), ("fashion_mnist", second))
    }
    found = judge(CLAIMS["inverse"], dict.fromkeys(results, LAPTOP), results)
    assert found["verdict"] == expected
    assert found["label"] == LABELS[found["verdict"]]


def test_a_data_set_that_is_withheld_or_not_comparable_leaves_the_others_undecided() -> None:
    """At the laptop's scale the claim on likelihood can be refuted alone: what favours it is withheld."""
    nll = EXAMPLES["nll"]
    one_on_gpu = {"lunet": subject("cpu", bits_per_dim=seeds(1.8)), "realnvp": nll["replicated"]["realnvp"]}
    for examples, scale, expected in (
        ((nll["not_replicated"], nll["replicated"]), LAPTOP, "undecided"),
        ((nll["replicated"], nll["not_replicated"]), LAPTOP, "undecided"),
        ((nll["replicated"], nll["partly"]), LAPTOP, "not_tested_at_this_scale"),
        ((nll["replicated"], one_on_gpu), PAPER, "undecided"),
        ((one_on_gpu, one_on_gpu), PAPER, "not_comparable"),
    ):
        results = dict(zip(("mnist", "fashion_mnist"), examples, strict=True))
        assert judge(CLAIMS["nll"], dict.fromkeys(results, scale), results)["verdict"] == expected


def test_mnist_alone_decides_on_samples() -> None:
    examples = EXAMPLES["samples"]
    for mnist, fashion in (("replicated", "not_replicated"), ("undecided", "replicated")):
        results = {"mnist": examples[mnist], "fashion_mnist": examples[fashion]}
        found = judge(CLAIMS["samples"], dict.fromkeys(results, LAPTOP), results)
        assert [row["verdict"] for row in found["datasets"]] == [mnist, fashion]
        assert found["verdict"] == mnist
    alone = judge(CLAIMS["samples"], {"fashion_mnist": LAPTOP}, {"fashion_mnist": examples["replicated"]})
    assert alone["verdict"] == "not_tested"


def test_the_determinant_is_judged_once_from_the_recipe_that_has_it() -> None:
    models: Subjects = {
        "mnist": {"lunet": subject(), "lunet_learned": determined(0.9, 2.6)},
        "fashion_mnist": {"lunet": subject()},
    }
    found = judge(CLAIMS["determinant"], dict.fromkeys(models, LAPTOP), models)
    assert [(row["title"], row["verdict"]) for row in found["datasets"]] == [("All data sets", "replicated")]
    assert found["verdict"] == "replicated"
    failed = judge(CLAIMS["determinant"], {"mnist": LAPTOP}, {"mnist": {"lunet": Subject(trouble="out of memory")}})
    assert failed["datasets"][0]["sentence"] == "Out of memory."


# Kept runs


def project_run(root: Path, name: str, **changes: Any) -> Kept:
    (root / name).mkdir()
    results = Project(root / name, parameters(**{**SMALL, **changes})).read()
    return Kept(name, results, subjects_of(results, curves_table(results.cells)))


def test_one_seed_has_the_spread_of_a_kept_run_of_the_same_recipes(tmp_path: Path) -> None:
    """At each seed of the made-up runs LU-Net is 0.4 bits/dim above RealNVP."""
    ours, paper = project_run(tmp_path, "ours"), load_params(tmp_path / "ours" / "params.yaml")
    kept = project_run(tmp_path, "kept", grid__seeds=[3, 4, 5])

    def nll(*runs: Kept) -> tuple[str, int]:
        judged = judgements(ours.results, paper, ours.subjects, runs)[2]
        difference = next(item for item in judged["datasets"][0]["evidence"] if item["name"] == "difference")
        return judged["verdict"], sum(end is not None for end in (difference["low"], difference["high"]))

    assert nll() == ("undecided", 0)
    assert nll(kept) == ("not_replicated", 2)
    assert nll(ours) == ("undecided", 0)
    other = project_run(tmp_path, "other", grid__seeds=[3, 4, 5], recipes__realnvp__training__epochs=7.0)
    assert nll(other) == ("undecided", 0)
    mnist = kept.results.datasets["mnist"]
    images = replace(mnist, info={**mnist.info, "sha256": {"train_images.npy": "another"}})
    assert nll(replace(kept, results=replace(kept.results, datasets={"mnist": images}))) == ("undecided", 0)
    both = claims_of(ours.results, paper, ours.subjects, [kept])
    assert both["claims"] == judgements(ours.results, paper, ours.subjects, [kept])
    assert {claim["id"]: claim["verdict"] for claim in both["kept"]["kept"]}["nll"] == "not_replicated"
    assert {*both["kept"]["kept"][0]} == {"id", "title", "verdict", "label"}


def test_how_a_step_is_computed_makes_no_other_recipe() -> None:
    recipe = load_preset("paper").recipe("realnvp")
    assert recipe.training is not None
    ways = {"precision": "bfloat16", "capture": True, "compile": True}
    faster = recipe.model_copy(update={"training": recipe.training.model_copy(update=ways)})
    shorter = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 1.0})})
    assert as_trained(faster) == as_trained(recipe) != as_trained(shorter)
    assert as_trained(load_preset("paper").recipe("gaussian")) == load_preset("paper").recipe("gaussian")
