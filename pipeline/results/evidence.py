"""The evidence for each claim: the statistics that `claims.yaml` names, computed from the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.results.claims import Claim
from pipeline.results.statistics import (
    Estimate,
    log_log_slope,
    mean_interval,
    median_interval,
    probability_below,
    ratio_of_medians,
)


@dataclass(frozen=True)
class Times:
    """Raw samples of one quantity: times in milliseconds or memory in MiB.

    Where ``images`` is less than ``of``, a time was taken on that many images and scaled to all of them.
    """

    samples: list[float]
    per: str
    unit: str
    batch: int | None = None
    images: int | None = None
    of: int | None = None


@dataclass(frozen=True)
class Subject:
    """The figures of one recipe on one data set; ``trouble`` says why a figure may be missing."""

    metrics: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    times: Mapping[str, Times] = field(default_factory=dict)
    determinant: Mapping[str, Any] | None = None
    classes: str | None = None
    devices: frozenset[str] = frozenset()
    machines: frozenset[str] = frozenset()
    trouble: str | None = None


class MissingError(Exception):
    """A figure that a claim needs is missing; the message says which and why."""


class DifferentError(Exception):
    """Two recipes cannot be compared; the message says why."""


Evidence = dict[str, Estimate]
# The evidence that needs several seeds.
BELOW = "below"


def _metric(subject: Subject, name: str) -> Estimate:
    values = subject.metrics.get(name, {})
    if not values:
        raise MissingError(subject.trouble or f"there is no figure for {name}")
    return mean_interval(list(values.values()))


def _times(subject: Subject, name: str) -> Times:
    if name not in subject.times:
        raise MissingError(subject.trouble or f"{name} was not measured")
    return subject.times[name]


def _difference(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    """The first compared recipe minus the second, paired by the seeds that both have."""
    by_recipe = [subjects[recipe].metrics.get(claim.statistic.quantity, {}) for recipe in claim.compares]
    seeds = sorted(set(by_recipe[0]) & set(by_recipe[1]))
    if not seeds:
        trouble = [subjects[recipe].trouble for recipe in claim.compares if subjects[recipe].trouble]
        raise MissingError("; ".join(map(str, trouble)) or "the recipes have no finished seed in common")
    evidence = {
        recipe: mean_interval([values[seed] for seed in seeds])
        for recipe, values in zip(claim.compares, by_recipe, strict=True)
    }
    evidence["difference"] = mean_interval([by_recipe[0][seed] - by_recipe[1][seed] for seed in seeds])
    if len(seeds) > 1:
        first, second = ([values[seed] for seed in seeds] for values in by_recipe)
        evidence[BELOW] = probability_below(first, second)
    for recipe in claim.compares:
        beside = subjects[recipe].metrics.get(claim.statistic.beside, {})
        if beside:
            evidence[f"beside_{recipe}"] = mean_interval(list(beside.values()))
    return evidence


def _ratio(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    """One recipe's figure divided by the other's: the ratio of medians, over raw times or over seeds."""
    statistic = claim.statistic
    above, below = subjects[statistic.above], subjects[statistic.below]
    if any(statistic.quantity in subject.metrics for subject in (above, below)):
        samples = {
            recipe: list(subjects[recipe].metrics.get(statistic.quantity, {}).values()) for recipe in claim.compares
        }
        for recipe, values in samples.items():
            if not values:
                raise MissingError(subjects[recipe].trouble or f"{recipe} has no {statistic.quantity}")
    else:
        samples = {}
        for recipe in claim.compares:
            times = _times(subjects[recipe], statistic.quantity)
            share = times.batch if statistic.per_image and times.batch else 1
            samples[recipe] = [value / share for value in times.samples]
        if above.machines != below.machines:
            raise DifferentError("the recipes were measured on different machines")
    if min(samples[statistic.below]) <= 0:
        raise MissingError(f"{statistic.quantity} of {statistic.below} is zero, and a ratio to zero says nothing")
    evidence = {recipe: median_interval(values) for recipe, values in samples.items()}
    if BELOW in claim.evidence and min(map(len, samples.values())) > 1:
        evidence[BELOW] = probability_below(*(samples[recipe] for recipe in claim.compares))
    return {**evidence, "ratio": ratio_of_medians(samples[statistic.above], samples[statistic.below])}


def _inverse(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    subject = subjects[claim.compares[0]]
    sampling, density = _times(subject, "sampling_large_ms"), _times(subject, "density_large_ms")
    lost = {seed: 1e6 * (1 - share) for seed, share in subject.metrics.get("pixels_exact", {}).items()}
    return {
        "lost": _metric(replace(subject, metrics={"pixels_exact": lost}), "pixels_exact"),
        "cost": ratio_of_medians(sampling.samples, density.samples),
    }


def _determinant(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    """Exponents over the larger half of the widths, at least three of them."""
    subject = subjects[claim.compares[0]]
    timings = subject.determinant
    if timings is None:
        raise MissingError(subject.trouble or "the determinant's cost was not measured")
    widths = timings["widths"]
    first = min(len(widths) // 2, max(len(widths) - 3, 0))
    if len(widths) - first < 3:
        raise MissingError(f"an exponent needs three widths or more, and {len(widths)} were measured")
    n = len(widths) - first

    def slope(name: str) -> float:
        return log_log_slope(widths[first:], [float(np.median(samples)) for samples in timings[name][first:]])

    diagonal, dense = slope("diagonal_ms"), slope("slogdet_ms")
    values = {"diagonal": diagonal, "dense": dense, "gap": dense - diagonal}
    return {name: Estimate(value, None, None, n) for name, value in values.items()}


def _likelihood(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    subject = subjects[claim.compares[0]]
    names = ("mean", "variance", "variance_min", "variance_max", "radius_distance")
    return {
        "improvement": _metric(subject, "holdout_improvement"),
        **{name: _metric(subject, f"latent_{name}") for name in names},
    }


def _samples(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    subject = subjects[claim.compares[0]]
    if subject.classes == "all":
        raise MissingError("one model was trained for all classes, so none can be asked for a class")
    return {"accuracy": _metric(subject, "sample_class_accuracy")}


STATISTICS: dict[str, Callable[[Claim, Mapping[str, Subject]], Evidence]] = {
    "difference": _difference,
    "ratio": _ratio,
    "inverse": _inverse,
    "determinant": _determinant,
    "likelihood": _likelihood,
    "samples": _samples,
}
