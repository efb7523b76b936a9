"""Tests of the statistics of the claims, and of their intervals against known numbers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from claim_subjects import (
    CLAIMS,
    PAPER,
    curve,
    determined,
    drawn,
    evidence_items,
    subject,
    timed,
    trained,
    verdict,
    weighed,
)

from pipeline.evaluation.record import ClassSamples
from pipeline.results.claim_statistics import (
    STATISTICS,
    Evidence,
    Repeated,
    epochs_to_reach,
    evidence_of,
    growth,
    interval_of,
)
from pipeline.results.statistics import Estimate
from pipeline.results.subjects import Compared, Curve, Subject, Times, UndecidedError

# t(0.975) with 2 and with 9 degrees of freedom
T2, T9 = 4.302653, 2.262157


def evidence(claim: str, *kept: Compared, **compared: Subject) -> Evidence:
    return evidence_of(CLAIMS[claim], compared, {f"kept-{number}": run for number, run in enumerate(kept)})


def test_every_kind_of_statistic_is_used() -> None:
    assert {claim.statistic.kind for claim in CLAIMS.values()} == set(STATISTICS)


# Intervals over what is repeated


def interval(ours: Repeated, *kept: Repeated) -> Estimate:
    figures = {"ours": ours, **{f"kept-{number}": other for number, other in enumerate(kept)}}
    runs: dict[str, Compared] = {name: {name: subject()} for name in figures}
    return interval_of(lambda compared: figures[next(iter(compared))], runs.pop("ours"), runs)


def ends(estimate: Estimate) -> tuple[float | None, float | None]:
    return estimate.low, estimate.high


def test_three_seeds_have_their_own_interval() -> None:
    estimate = interval(Repeated({0: 1.0, 1: 2.0, 2: 3.0}), Repeated(dict.fromkeys(range(9), 7.0)))
    assert ends(estimate) == pytest.approx((2 - T2 / math.sqrt(3), 2 + T2 / math.sqrt(3)), abs=1e-6)
    assert (estimate.value, estimate.n, estimate.spread_of) == (2, 3, None)


@pytest.mark.parametrize("seeds", [1, 2])
def test_models_of_ten_classes_have_the_interval_over_the_classes(seeds: int) -> None:
    """The mean is that of all images, which need not be the mean of the classes."""
    by_class = {seed: {str(label): label + seed - (seeds - 1) / 2 for label in range(10)} for seed in range(seeds)}
    estimate = interval(Repeated(dict.fromkeys(range(seeds), 4.4), by_class))
    half = T9 * math.sqrt(110 / 12) / math.sqrt(10)  # the standard deviation of 0 to 9
    assert ends(estimate) == pytest.approx((4.4 - half, 4.4 + half), abs=1e-5)
    assert estimate.n == 10


@pytest.mark.parametrize(("seeds", "half"), [([5.0], T2), ([4.0, 6.0], T2 / math.sqrt(2))])
def test_fewer_seeds_have_the_spread_of_the_kept_run_with_most(seeds: list[float], half: float) -> None:
    kept = [Repeated(dict(enumerate(values))) for values in ([1.0], [1.0, 2.0, 3.0], [0.0, 9.0])]
    estimate = interval(Repeated(dict(enumerate(seeds))), *kept)
    assert ends(estimate) == pytest.approx((5 - half, 5 + half), abs=1e-6)
    assert (estimate.value, estimate.n, estimate.spread_of) == (5, len(seeds), "3 seeds of kept-1")


def test_classes_are_joined_by_their_labels() -> None:
    """The order of the labels may differ between seeds, and a label that one seed lacks does not count."""
    first = {str(label): float(label) for label in range(10)}
    second = {label: first[label] for label in reversed(first)}
    expected = interval(Repeated({0: 4.5}, {0: first}))
    assert interval(Repeated({0: 4.5, 1: 4.5}, {0: first, 1: second})) == expected
    assert interval(Repeated({0: 4.5, 1: 4.5}, {0: {**first, "10": 99.0}, 1: second})) == expected


def test_otherwise_there_is_none() -> None:
    for ours in (Repeated({0: 1.0}), Repeated({0: 1.0, 1: 2.0}), Repeated({0: 1.0}, {0: {"0": 1.0, "1": 2.0}})):
        assert ends(interval(ours, Repeated({0: 1.0, 1: 3.0}))) == (None, None)


def test_a_kept_run_that_lacks_the_figure_is_passed_over() -> None:
    lunet = subject(gain_over_gaussian=0.5, gain_over_identity=2.0)
    repeated = subject(gain_over_gaussian=[0.4, 0.5, 0.6], gain_over_identity=[1.0, 2.0, 3.0])
    found = evidence("likelihood", {"lunet": subject()}, {"lunet": repeated}, lunet=lunet)
    assert ends(found["gaussian"]) == pytest.approx((0.5 - 0.1 * T2, 0.5 + 0.1 * T2), abs=1e-6)


# Differences


def test_seeds_are_paired() -> None:
    """Seeds differ by far more than the models: unpaired, the interval would contain zero."""
    lunet, realnvp = subject("cuda", bits_per_dim=[1.0, 2.0, 3.0]), subject("cuda", bits_per_dim=[1.2, 2.21, 3.19])
    assert verdict("nll", PAPER, lunet=lunet, realnvp=realnvp)[0] == "replicated"


def test_a_diverged_seed_leaves_the_others_in_pairs() -> None:
    """Seed 1 of RealNVP diverged: its partner does not count."""
    lunet = subject(bits_per_dim=[1.0, 9.0, 1.2])
    realnvp = replace(subject(), metrics={"bits_per_dim": {0: 1.3, 2: 1.4}}, trouble="seed 1 of realnvp: diverged")
    found = evidence("nll", lunet=lunet, realnvp=realnvp)
    assert (found["lunet"].value, found["lunet"].n) == (1.1, 2)
    assert found["difference"].value == pytest.approx(-0.25)
    assert (*ends(found["difference"]), found["difference"].n) == (None, None, 2)


def test_seeds_that_have_no_partner_are_an_error() -> None:
    lunet = replace(subject(), metrics={"bits_per_dim": {0: 1.8}})
    realnvp = replace(subject(), metrics={"bits_per_dim": {1: 1.4}})
    with pytest.raises(UndecidedError, match="no finished seed in common"):
        evidence("nll", lunet=lunet, realnvp=realnvp)


def test_classes_are_paired() -> None:
    """Classes differ by far more than the models; over one seed of models for each class that is the interval."""
    levels = {str(label): float(label) for label in range(10)}
    models = {
        name: replace(
            subject("cuda", bits_per_dim=4.5 + shift),
            classes="each",
            by_class={"bits_per_dim": {0: {label: level + shift for label, level in levels.items()}}},
        )
        for name, shift in (("lunet", -0.1), ("realnvp", 0.0))
    }
    difference = evidence("nll", **models)["difference"]
    assert ends(difference) == pytest.approx((-0.1, -0.1))
    assert (verdict("nll", PAPER, **models)[0], difference.n) == ("replicated", 10)


# Epochs


def test_epochs_are_interpolated_on_their_logarithm() -> None:
    found = Curve([0.0, 1.0, 100.0, 200.0], [5.0, 2.0, 1.0, 1.5])
    assert epochs_to_reach(found, 1.5) == pytest.approx(10)
    assert epochs_to_reach(found, 1.0) == pytest.approx(100)
    assert epochs_to_reach(found, 1.99) == pytest.approx(100**0.01)


@pytest.mark.parametrize("target", [2.0, 5.0])
def test_what_is_reached_by_the_first_validation_is_unknown(target: float) -> None:
    assert epochs_to_reach(Curve([0.0, 1.0, 2.0], [5.0, 2.0, 1.0]), target) is None
    early = replace(subject(), curves={0: {"all": Curve([0.0, 1.0, 2.0], [5.0, target, 1.0])}})
    late = replace(subject(), curves={0: {"all": Curve([0.0, 1.0, 2.0], [6.0, target + 0.5, target])}})
    result, sentence = verdict("epochs", PAPER, lunet=late, realnvp=early)
    assert (result, sentence) == (
        "undecided",
        f"{target:.3f} bits/dim were reached by the first validation of realnvp.",
    )


@pytest.mark.parametrize("last", [*itertools.product([20.0, 100.0, 400.0], repeat=2)])
def test_the_configured_epochs_do_not_decide(last: tuple[float, float]) -> None:
    """RealNVP needs three times the epochs for each likelihood, however long either model is trained."""
    curves = {"lunet": curve(1.0, last=last[0]), "realnvp": curve(3.0, last=last[1])}
    models = {name: replace(subject(), curves={0: {"all": found}}) for name, found in curves.items()}
    found = evidence("epochs", **models)
    assert found["ratio"].value == pytest.approx(3, rel=0.02)  # the interpolation
    assert found["realnvp"].value / found["lunet"].value == pytest.approx(found["ratio"].value)


def test_the_worse_model_takes_the_epochs_to_its_best() -> None:
    worse = replace(subject(), curves={0: {"all": Curve([0.0, 1.0, 10.0, 20.0], [5.0, 3.0, 2.0, 2.5])}})
    better = replace(subject(), curves={0: {"all": Curve([0.0, 0.1, 10.0], [5.0, 3.0, 1.0])}})
    found = evidence("epochs", lunet=worse, realnvp=better)
    assert [found[name].value for name in ("lunet", "realnvp", "ratio")] == pytest.approx([10, 1, 0.1])


def test_the_interval_of_epochs_is_that_of_their_logarithm() -> None:
    found = evidence("epochs", lunet=trained(1.0, 1.0, 1.0), realnvp=trained(2.0, 3.0, 4.5))["ratio"]
    assert found.value == pytest.approx(3, rel=0.02)
    half = T2 * math.log(1.5) / math.sqrt(3)
    assert ends(found) == pytest.approx((3 * math.exp(-half), 3 * math.exp(half)), rel=0.05)
    classes = {str(label): curve(3.0 * (1 + label / 100)) for label in range(10)}
    each = {
        "lunet": replace(subject(), classes="each", curves={0: dict.fromkeys(classes, curve(1.0))}),
        "realnvp": replace(subject(), classes="each", curves={0: classes}),
    }
    ratio = evidence("epochs", **each)["ratio"]
    assert ratio.n == 10
    assert ratio.low is not None
    assert 3 < ratio.low < ratio.value < 3.3


# Times and memory


def test_steps_are_compared_whole_and_per_image() -> None:
    found = evidence("step", lunet=timed("cuda", 2.0, batch=256), realnvp=timed("cuda", 12.0, batch=64))
    assert (found["ratio"].value, found["per_image"].value) == pytest.approx((6, 24))
    assert found["ratio"].low is not None
    assert found["per_image"].low == pytest.approx(4 * found["ratio"].low)


def test_memory_of_an_allocator_is_its_own_interval() -> None:
    found = evidence("memory", lunet=weighed(1000), realnvp=weighed(1700))
    assert found["ratio"] == Estimate(1.7, 1.7, 1.7, 1)
    found = evidence("memory", lunet=weighed(1000, 1010), realnvp=weighed(1700, 1717))
    assert ends(found["ratio"]) == pytest.approx((1700 / 1010, 1.717))


def test_on_a_cpu_memory_above_the_start_is_shown_without_an_interval() -> None:
    def on_cpu(start: float, peak: float) -> Subject:
        times = {"memory_training_mib": peak, "memory_training_above_start_mib": peak - start}
        return replace(subject(), times={name: Times([mib], "process", "MiB") for name, mib in times.items()})

    found = evidence("memory", lunet=on_cpu(300, 400), realnvp=on_cpu(300, 600))
    assert found["ratio"] == Estimate(3, None, None, 1)
    assert (found["lunet"].value, found["process_lunet"].value) == (100, 400)
    with pytest.raises(UndecidedError, match="did not grow"):
        evidence("memory", lunet=on_cpu(300, 300), realnvp=on_cpu(300, 600))


# The determinant


def test_growth_of_exact_powers_is_exact() -> None:
    widths = [64, 128, 256]
    found = growth(widths, [[width / 64] * 3 for width in widths], [[(width / 64) ** 3] * 3 for width in widths])
    expected = {"diagonal": 1, "dense": 3, "gap": 2, "ratio": 16}
    for name, value in expected.items():
        assert (found[name].value, found[name].low, found[name].high) == pytest.approx((value, value, value))


def test_the_interval_of_an_exponent_is_that_of_a_fitted_line() -> None:
    """Logarithms to the base 4 of the medians are 0, 2, 1, 3, and those of the dense matrix's three times as large."""
    widths, logs = [64, 256, 1024, 4096], (0, 2, 1, 3)
    found = growth(widths, [[0.9 * 4**y, 4**y, 2 * 4**y] for y in logs], [[64**y] * 3 for y in logs])
    half = T2 * math.sqrt(1.8 / 2 / 5)
    for name, factor in (("diagonal", 1), ("dense", 3), ("gap", 2)):
        assert found[name].value == pytest.approx(0.8 * factor)
        assert ends(found[name]) == pytest.approx((factor * (0.8 - half), factor * (0.8 + half)), abs=1e-5)
        assert found[name].n == 4


def test_the_ratio_of_determinants_has_the_range_of_the_repetitions() -> None:
    widths, ones = [64, 128, 256], [[1.0, 1.0, 1.0]] * 2
    ratio = growth(widths, [*ones, [1.0, 2.0, 4.0]], [*ones, [30.0, 40.0, 60.0]])["ratio"]
    assert (ratio.value, ratio.low, ratio.high, ratio.n) == pytest.approx((20, 7.5, 60, 3))
    assert ends(growth(widths, [*ones, [1.0, 2.0]], [*ones, [30.0, 40.0]])["ratio"]) == (None, None)
    assert ends(growth(widths, [*ones, [-0.1, 2.0, 4.0]], [*ones, [30.0, 40.0, 60.0]])["ratio"]) == (None, None)


def test_widths_that_time_the_call_do_not_count() -> None:
    """Below D = 29 a time is shorter than twice a call; the exponents are those of what exceeds a call."""
    widths = [8, 16, 24, 256, 512, 1024, 2048]
    found = evidence("determinant", lunet=determined(0.9, 2.6, widths, noise=0.0))
    assert found["diagonal"].n == 4
    assert (found["diagonal"].value, found["dense"].value) == pytest.approx((0.9, 2.6))
    result, sentence = verdict("determinant", PAPER, lunet=determined(0.9, 2.6, widths[:5]))
    assert result == "undecided"
    assert sentence == "At 2 of 5 widths both times are at least twice that of a call, and an exponent needs three."
    old = determined(0.9, 2.6)
    assert old.determinant is not None
    old = replace(old, determinant=old.determinant.model_copy(update={"call_ms": None}))
    result, sentence = verdict("determinant", PAPER, lunet=old)
    assert (result, sentence) == ("not_tested", "The cost of a call, that of a 1×1 matrix, was not measured.")


# Figures and samples


def test_latents_are_shown_and_not_judged() -> None:
    gains = {"gain_over_gaussian": [0.3, 0.31, 0.32], "gain_over_identity": [2.0, 2.1, 2.2]}
    for latents in ({}, {"latent_variance_max": 40.0, "latent_radius_distance": 0.6}):
        lunet = subject(**gains, **latents)
        assert verdict("likelihood", PAPER, lunet=lunet)[0] == "replicated"
        shown = evidence_items("likelihood", PAPER, lunet=lunet)
        assert len(shown) == 2 + len(latents)


def test_a_share_has_the_wider_of_wilson_s_interval_and_that_over_seeds() -> None:
    """Of 3,000 samples, 0.9 right, Wilson's interval is 0.0108 wide to either side."""
    alike = evidence("samples", lunet=drawn(0.9, 0.9, 0.9))["share"]
    assert (alike.value, alike.n) == (0.9, 3000)
    assert ends(alike) == pytest.approx((0.8888, 0.9102), abs=5e-4)
    apart = evidence("samples", lunet=drawn(0.8, 0.9, 0.97))["share"]
    half = T2 * np.std([0.8, 0.9, 0.97], ddof=1) / math.sqrt(3)
    assert ends(apart) == pytest.approx((0.89 - half, 1), abs=1e-6)


def test_models_of_each_class_have_the_interval_over_the_classes() -> None:
    right = [100, 95, 90, 85, 80, 100, 95, 90, 85, 80]
    samples = {"fitted": {0: ClassSamples(of_each=100, right=right)}}
    each = replace(subject("cuda"), classes="each", class_samples=samples)
    half = T9 * np.std(right, ddof=1) / 100 / math.sqrt(10)
    assert ends(evidence("samples", lunet=each)["share"]) == pytest.approx((0.9 - half, 0.9 + half), abs=1e-6)
    assert verdict("samples", PAPER, lunet=each)[0] == "replicated"
    assert verdict("samples", PAPER, lunet=replace(each, classes="all"))[0] == "undecided"


def test_fewer_than_a_thousand_samples_decide_nothing() -> None:
    assert verdict("samples", PAPER, lunet=drawn(0.93, 0.92, 0.94, of_each=33))[0] == "undecided"
    assert verdict("samples", PAPER, lunet=drawn(0.93, 0.92, 0.94, of_each=34))[0] == "replicated"


def test_samples_from_another_gaussian_do_not_count() -> None:
    assert verdict("samples", PAPER, lunet=drawn(0.93, 0.92, 0.94, base="standard_normal"))[0] == "not_tested"
