"""The statistics of the claims: from the figures of the compared recipes to the numbers that a rule judges.

A verdict needs an interval. For what a training decides it is over three seeds or more; or else over the classes, if
each has a model of its own; or else it has the spread over the seeds of a kept run with the same recipes and data.
Without any of them an estimate has no interval, and the claim stays undecided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.results import statistics
from pipeline.results.claims import Claim, Kind
from pipeline.results.statistics import REPEATS, Estimate
from pipeline.results.subjects import Compared, Curve, Times, UndecidedError

Evidence = dict[str, Estimate]
KeptRuns = Mapping[str, Compared]  # by the name of the run
LEAST_SAMPLES = 1000


@dataclass(frozen=True)
class Repeated:
    """A figure of each seed and, if each class has a model of its own, of each class of each seed."""

    seeds: Mapping[int, float]
    classes: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


def interval_of(figure: Callable[[Compared], Repeated], compared: Compared, kept: KeptRuns) -> Estimate:
    """The mean of a figure over seeds, with the interval that the repetitions allow.

    Args:
        figure: The figure as a function of the compared recipes.
        compared: The recipes.
        kept: The same recipes on the same data in kept runs, by the name of the run.
    """
    ours = figure(compared)
    values = list(ours.seeds.values())
    mean, half, n = statistics.mean_interval(values).value, None, len(values)
    spread_of = None
    models = [*ours.classes.values()]
    labels = set.intersection(*map(set, models)) if models else set()
    if n >= REPEATS:
        half = statistics.half_width(values, n)
    elif len(labels) >= REPEATS:
        n = len(labels)
        half = statistics.half_width(
            [float(np.mean([found[label] for found in models])) for label in sorted(labels)], n
        )
    else:
        spreads = {name: _seeds(figure, other) for name, other in kept.items()}
        name = max(spreads, key=lambda name: len(spreads[name]), default="")
        if len(spread := spreads.get(name, [])) >= REPEATS:
            half, spread_of = statistics.half_width(spread, n), f"{len(spread)} seeds of {name}"
    return Estimate(mean, None, None, n) if half is None else Estimate(mean, mean - half, mean + half, n, spread_of)


def _seeds(figure: Callable[[Compared], Repeated], compared: Compared) -> list[float]:
    try:
        return list(figure(compared).seeds.values())
    except UndecidedError:
        return []


def _common(compared: Compared, by_seed: Sequence[Mapping[int, object]]) -> list[int]:
    """The seeds that all recipes have."""
    seeds = sorted(set.intersection(*map(set, by_seed)))
    if not seeds:
        trouble = [subject.trouble for subject in compared.values() if subject.trouble]
        raise UndecidedError("; ".join(trouble) or "the recipes have no finished seed in common")
    return seeds


def _difference(claim: Claim, compared: Compared, kept: KeptRuns) -> Evidence:
    """The first compared recipe minus the second, paired by seed and class."""
    name = claim.statistic.quantity

    def difference(pair: Compared) -> Repeated:
        first, second = (subject.metrics.get(name, {}) for subject in pair.values())
        ours, theirs = (subject.by_class.get(name, {}) for subject in pair.values())
        seeds = _common(pair, (first, second))
        return Repeated(
            {seed: first[seed] - second[seed] for seed in seeds},
            {
                seed: {label: value - theirs[seed][label] for label, value in ours[seed].items()}
                for seed in seeds
                if seed in ours and seed in theirs
            },
        )

    estimate = interval_of(difference, compared, kept)
    seeds = _common(compared, [subject.metrics.get(name, {}) for subject in compared.values()])
    means = {
        recipe: statistics.mean_interval([subject.metrics[name][seed] for seed in seeds])
        for recipe, subject in compared.items()
    }
    return {**means, "difference": estimate}


def epochs_to_reach(curve: Curve, target: float) -> float | None:
    """The epochs until the held-out bits/dim first reach a target, interpolated on the logarithm of the epoch.

    None if they have reached it by the first validation after the initialisation, when there is no telling how early.
    """
    first = next(i for i, bits in enumerate(curve.bits_per_dim) if bits <= target)
    if first == 0 or curve.epochs[first - 1] == 0:
        return None
    (start, end), (above, below) = curve.epochs[first - 1 : first + 1], curve.bits_per_dim[first - 1 : first + 1]
    return start * (end / start) ** ((above - target) / (above - below))


def _log_epochs(compared: Compared) -> dict[int, dict[str, dict[str, float]]]:
    """The logarithm of the epochs to what the worse model reaches at its best, by seed, model and recipe."""
    curves = {recipe: subject.curves for recipe, subject in compared.items()}
    logs: dict[int, dict[str, dict[str, float]]] = {}
    for seed in _common(compared, [*curves.values()]):
        logs[seed] = {}
        if len({frozenset(found[seed]) for found in curves.values()}) > 1:
            raise UndecidedError("the recipes have models of different classes", "not_comparable")
        for model in next(iter(curves.values()))[seed]:
            pair = {recipe: found[seed][model] for recipe, found in curves.items()}
            target = max(min(curve.bits_per_dim) for curve in pair.values())
            epochs = {recipe: epochs_to_reach(curve, target) for recipe, curve in pair.items()}
            if early := [recipe for recipe, found in epochs.items() if found is None]:
                message = f"{target:.3f} bits/dim were reached by the first validation of {' and of '.join(early)}"
                raise UndecidedError(message, "undecided")
            logs[seed][model] = {recipe: math.log(found) for recipe, found in epochs.items() if found}
    return logs


def _epochs(claim: Claim, compared: Compared, kept: KeptRuns) -> Evidence:
    """Epochs to what the worse of two models reaches at its best, one's over the other's, paired by seed and class."""
    above, below = claim.statistic.above, claim.statistic.below

    def log_ratio(pair: Compared) -> Repeated:
        by_class = {
            seed: {model: logs[above] - logs[below] for model, logs in models.items()}
            for seed, models in _log_epochs(pair).items()
        }
        return Repeated({seed: float(np.mean([*ratios.values()])) for seed, ratios in by_class.items()}, by_class)

    every = [logs for models in _log_epochs(compared).values() for logs in models.values()]
    means = {name: float(np.mean([logs[name] for logs in every])) for name in compared}
    evidence = {name: _exponential(Estimate(mean, None, None, len(every))) for name, mean in means.items()}
    return {**evidence, "ratio": _exponential(interval_of(log_ratio, compared, kept))}


def _exponential(estimate: Estimate) -> Estimate:
    low, high = (None if end is None else math.exp(end) for end in (estimate.low, estimate.high))
    return Estimate(math.exp(estimate.value), low, high, estimate.n, estimate.spread_of)


def _ratio(above: Times, below: Times) -> Estimate:
    return statistics.ratio_over_processes(above.samples, above.process, below.samples, below.process)


def _times(claim: Claim, compared: Compared, _: KeptRuns) -> Evidence:
    """One recipe's time divided by the other's, and the same per image where batches may differ."""
    times = {recipe: subject.time(claim.statistic.quantity) for recipe, subject in compared.items()}
    if len({subject.machines for subject in compared.values()}) > 1:
        raise UndecidedError("the recipes were measured on different machines", "not_comparable")
    above, below = times[claim.statistic.above], times[claim.statistic.below]
    evidence = {name: statistics.median_over_processes(time.samples, time.process) for name, time in times.items()}
    evidence["ratio"] = ratio = _ratio(above, below)
    if above.batch and below.batch:
        images = below.batch / above.batch
        low, high = (None if end is None else end * images for end in (ratio.low, ratio.high))
        evidence["per_image"] = Estimate(ratio.value * images, low, high, ratio.n)
    return evidence


def _memory(claim: Claim, compared: Compared, _: KeptRuns) -> Evidence:
    """One recipe's peak of memory divided by the other's, with that of the whole process beside it.

    A GPU's allocator counts bytes, which repeats exactly: the interval is from the least to the largest ratio, a point
    for a single count. Of a CPU, the memory above that at the start is taken, without an interval.
    """
    name = claim.statistic.quantity
    on_gpu = all(subject.time(f"{name}_mib").per == "allocator" for subject in compared.values())
    ours, process = ("mib", "gpu_process_mib") if on_gpu else ("above_start_mib", "mib")
    peaks = {recipe: subject.time(f"{name}_{ours}").samples for recipe, subject in compared.items()}
    above, below = peaks[claim.statistic.above], peaks[claim.statistic.below]
    if min(below) <= 0:
        raise UndecidedError("a process did not grow, and a ratio to zero says nothing")
    evidence = {recipe: Estimate(float(np.median(values)), None, None, len(values)) for recipe, values in peaks.items()}
    ratio = float(np.median(above) / np.median(below))
    low, high = (min(above) / max(below), max(above) / min(below)) if on_gpu else (None, None)
    evidence["ratio"] = Estimate(ratio, low, high, min(len(above), len(below)))
    for recipe, subject in compared.items():
        if whole := subject.times.get(f"{name}_{process}"):
            evidence[f"process_{recipe}"] = Estimate(float(np.median(whole.samples)), None, None, len(whole.samples))
    return evidence


def _determinant(claim: Claim, compared: Compared, _: KeptRuns) -> Evidence:
    """Exponents and, at the largest width, the ratio of times, over the widths where both take longer than a call.

    The median time of a call is subtracted from all times: a constant would lower the exponents.
    """
    subject = compared[claim.compares[0]]
    if (timings := subject.determinant) is None:
        raise UndecidedError(subject.trouble or "the determinant's cost was not measured")
    if timings.call_ms is None:
        raise UndecidedError("the cost of a call, that of a 1×1 matrix, was not measured")
    call = float(np.median(timings.call_ms))
    rows = [
        (width, diagonal, dense)
        for width, diagonal, dense in zip(timings.widths, timings.diagonal_ms, timings.slogdet_ms, strict=True)
        if min(np.median(diagonal), np.median(dense)) >= 2 * call
    ]
    if len(rows) < REPEATS:
        what = f"at {len(rows)} of {len(timings.widths)} widths both times are at least twice that of a call"
        raise UndecidedError(f"{what}, and an exponent needs three", "undecided")
    widths, diagonal, dense = zip(*rows, strict=True)
    return growth(widths, *([np.subtract(times, call).tolist() for times in both] for both in (diagonal, dense)))


def growth(widths: Sequence[int], diagonal: Sequence[list[float]], dense: Sequence[list[float]]) -> Evidence:
    """The exponents of two times in the width, their gap, and the ratio at the largest width, all from medians.

    Exponents are slopes by least squares on logarithms, with Student's t interval from the residuals. The interval of
    the ratio is the range of the repetitions' ratios; there is none for fewer than three repetitions, or if a time is
    not positive.
    """
    logs = {name: np.log([np.median(row) for row in rows]) for name, rows in (("diagonal", diagonal), ("dense", dense))}
    logs["gap"] = logs["dense"] - logs["diagonal"]
    evidence = {name: statistics.slope_interval(np.log(widths).tolist(), y.tolist()) for name, y in logs.items()}
    ours, theirs = diagonal[-1], dense[-1]
    n = min(len(ours), len(theirs))
    is_bounded = n >= REPEATS and min(*ours, *theirs) > 0
    low, high = (min(theirs) / max(ours), max(theirs) / min(ours)) if is_bounded else (None, None)
    return {**evidence, "ratio": Estimate(math.exp(logs["gap"][-1]), low, high, n)}


def _figures(claim: Claim, compared: Compared, kept: KeptRuns) -> Evidence:
    """The figures of one recipe that the rule names: metrics, or one time divided by another."""
    recipe = claim.compares[0]
    evidence: Evidence = {}
    for name in claim.judged:
        label = claim.evidence[name]

        def figure(pair: Compared, metric: str = label.metric, title: str = label.label) -> Repeated:
            subject = pair[recipe]
            return Repeated(subject.metric(metric, title), subject.by_class.get(metric, {}))

        if label.times:
            evidence[name] = _ratio(*(compared[recipe].time(time) for time in label.times))
        else:
            evidence[name] = interval_of(figure, compared, kept)
    return evidence


def _samples(claim: Claim, compared: Compared, kept: KeptRuns) -> Evidence:
    """The share of samples that are right, over all seeds and classes.

    Its interval contains Wilson's, which is for these models alone, and that over the models.
    """
    recipe, base = claim.compares[0], claim.statistic.quantity

    def shares(pair: Compared) -> Repeated:
        found = pair[recipe].class_samples.get(base)
        if not found:
            raise UndecidedError(pair[recipe].trouble or "there are no samples of each class from a fitted Gaussian")
        by_class = {seed: {str(c): n / one.of_each for c, n in enumerate(one.right)} for seed, one in found.items()}
        means = {seed: float(np.mean([*values.values()])) for seed, values in by_class.items()}
        return Repeated(means, by_class if pair[recipe].classes == "each" else {})

    over_models = interval_of(shares, compared, kept)
    samples = compared[recipe].class_samples[base].values()
    total = sum(one.of_each * len(one.right) for one in samples)
    pooled = statistics.proportion_interval(sum(sum(one.right) for one in samples), total)
    if pooled.n < LEAST_SAMPLES or over_models.low is None:
        return {"share": Estimate(pooled.value, None, None, pooled.n)}
    low, high = min(pooled.least, over_models.least), max(pooled.most, over_models.most)
    return {"share": Estimate(pooled.value, max(0.0, low), min(1.0, high), pooled.n, over_models.spread_of)}


STATISTICS: dict[Kind, Callable[[Claim, Compared, KeptRuns], Evidence]] = {
    "difference": _difference,
    "epochs": _epochs,
    "times": _times,
    "memory": _memory,
    "determinant": _determinant,
    "figures": _figures,
    "samples": _samples,
}


def evidence_of(claim: Claim, compared: Compared, kept: KeptRuns) -> Evidence:
    """The numbers that the claim's rule judges, and those that are shown beside them where there are any.

    Raises:
        UndecidedError: If a number that the rule judges is missing.
    """
    evidence = STATISTICS[claim.statistic.kind](claim, compared, kept)
    for name, label in claim.evidence.items():
        values = compared[label.recipe or claim.compares[0]].metrics.get(label.metric)
        if name not in evidence and values:
            evidence[name] = statistics.mean_interval(list(values.values()))
    return evidence
