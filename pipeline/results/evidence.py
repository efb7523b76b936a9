"""The evidence for each claim: the statistics that `claims.yaml` names, computed from the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.measuring.record import Determinant
from pipeline.results.claims import Claim, Kind, Verdict
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
    determinant: Determinant | None = None
    classes: str | None = None
    devices: frozenset[str] = frozenset()
    machines: frozenset[str] = frozenset()
    trouble: str | None = None

    def metric(self, name: str) -> list[float]:
        """A metric's values over the seeds; raises an `UndecidedError` if there are none."""
        if not self.metrics.get(name):
            raise UndecidedError(self.trouble or f"there is no figure for {name}")
        return list(self.metrics[name].values())

    def time(self, name: str) -> Times:
        """The samples of a time or of memory; raises an `UndecidedError` if there are none."""
        if name not in self.times:
            raise UndecidedError(self.trouble or f"{name} was not measured")
        return self.times[name]


class UndecidedError(Exception):
    """A claim that cannot be decided: a figure is missing, or two recipes cannot be compared.

    The message says which and why; ``verdict`` is that of the claim.
    """

    def __init__(self, message: str, verdict: Verdict = "not_tested") -> None:
        super().__init__(message)
        self.verdict = verdict


Evidence = dict[str, Estimate]
# The evidence that needs several seeds.
BELOW = "below"


def _difference(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    """The first compared recipe minus the second, paired by the seeds that both have."""
    compared, statistic = {recipe: subjects[recipe] for recipe in claim.compares}, claim.statistic
    first, second = (subject.metrics.get(statistic.quantity, {}) for subject in compared.values())
    seeds = sorted(set(first) & set(second))
    if not seeds:
        trouble = [subject.trouble for subject in compared.values() if subject.trouble]
        raise UndecidedError("; ".join(trouble) or "the recipes have no finished seed in common")
    samples = [[values[seed] for seed in seeds] for values in (first, second)]
    evidence = dict(zip(compared, map(mean_interval, samples), strict=True))
    evidence["difference"] = mean_interval([one - other for one, other in zip(*samples, strict=True)])
    if len(seeds) > 1:
        evidence[BELOW] = probability_below(*samples)
    for recipe, subject in compared.items():
        if beside := subject.metrics.get(statistic.beside):
            evidence[f"beside_{recipe}"] = mean_interval(list(beside.values()))
    return evidence


def _ratio(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    """One recipe's figure divided by the other's: the ratio of medians, over raw times or over seeds."""
    compared, statistic = {recipe: subjects[recipe] for recipe in claim.compares}, claim.statistic
    samples: dict[str, list[float]] = {}
    if any(statistic.quantity in subject.metrics for subject in compared.values()):
        for recipe, subject in compared.items():
            samples[recipe] = list(subject.metrics.get(statistic.quantity, {}).values())
            if not samples[recipe]:
                raise UndecidedError(subject.trouble or f"{recipe} has no {statistic.quantity}")
    else:
        for recipe, subject in compared.items():
            times = subject.time(statistic.quantity)
            share = times.batch if statistic.per_image and times.batch else 1
            samples[recipe] = [value / share for value in times.samples]
        if len({subject.machines for subject in compared.values()}) > 1:
            raise UndecidedError("the recipes were measured on different machines", "not_comparable")
    above, below = samples[statistic.above], samples[statistic.below]
    if min(below) <= 0:
        raise UndecidedError(f"{statistic.quantity} of {statistic.below} is zero, and a ratio to zero says nothing")
    evidence = {recipe: median_interval(values) for recipe, values in samples.items()}
    if BELOW in claim.evidence and min(map(len, samples.values())) > 1:
        evidence[BELOW] = probability_below(*samples.values())
    return {**evidence, "ratio": ratio_of_medians(above, below)}


def _determinant(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    """Exponents over the larger half of the widths, at least three of them."""
    subject = subjects[claim.compares[0]]
    if (timings := subject.determinant) is None:
        raise UndecidedError(subject.trouble or "the determinant's cost was not measured")
    n = len(timings.widths)
    larger = slice(min(n // 2, max(n - 3, 0)), n)
    widths = timings.widths[larger]
    if len(widths) < 3:
        raise UndecidedError(f"an exponent needs three widths or more, and {n} were measured")
    diagonal, dense = (
        log_log_slope(widths, [float(np.median(samples)) for samples in times[larger]])
        for times in (timings.diagonal_ms, timings.slogdet_ms)
    )
    values = {"diagonal": diagonal, "dense": dense, "gap": dense - diagonal}
    return {name: Estimate(value, None, None, len(widths)) for name, value in values.items()}


def _figures(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    """The figures of one recipe that the claim's evidence names: metrics, or one time divided by another."""
    subject = subjects[claim.compares[0]]
    if claim.statistic.of_a_class and subject.classes == "all":
        raise UndecidedError("one model was trained for all classes, so none can be asked for a class")
    return {
        name: ratio_of_medians(*(subject.time(time).samples for time in label.times))
        if label.times
        else mean_interval(subject.metric(label.metric))
        for name, label in claim.evidence.items()
    }


STATISTICS: dict[Kind, Callable[[Claim, Mapping[str, Subject]], Evidence]] = {
    "difference": _difference,
    "ratio": _ratio,
    "determinant": _determinant,
    "figures": _figures,
}
