"""The content of `claims.json`: the rules of `claims.yaml` applied to the evidence, and printed figures converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import numpy as np

from pipeline.core.dataset import Dataset
from pipeline.core.params import Params, Recipe, Training
from pipeline.evaluation import released_bits
from pipeline.evaluation.record import Likelihood
from pipeline.measuring.record import Determinant
from pipeline.results import statistics
from pipeline.results.claims import LABELS, Bounds, Claim, ClaimsFile, Kind, Level, Verdict, load_claims
from pipeline.results.reading import Results
from pipeline.results.statistics import Estimate, format_number, round_significant

# The verdicts that decide a claim, with what is added to its sentence where the scale is too small to decide it and its
# bounds would give that verdict; the smoke preset adds nothing.
LEANINGS: dict[Verdict, str] = {
    "replicated": " By the same bounds the claim would hold here.",
    "partly": " By the same bounds the claim would hold in part here.",
    "not_replicated": " By the same bounds the claim would not hold here.",
}
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Times:
    """Raw samples of one quantity: times in milliseconds or memory in MiB.

    ``process`` has the number of the process that took each sample; None if one took all.

    Where ``images`` is less than ``of``, a time was taken on that many images and scaled to all of them. A time of
    training steps has their ``precision``. Memory by a GPU's allocator has in ``gpu_process`` how that of the whole
    process is known.
    """

    samples: list[float]
    per: str
    unit: str
    batch: int | None = None
    images: int | None = None
    of: int | None = None
    precision: str | None = None
    gpu_process: str | None = None
    process: list[int] | None = None


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


# The figures of each recipe that a claim compares, in the claim's order; and those of all, by data set.
Compared = Mapping[str, Subject]
Subjects = Mapping[str, Mapping[str, Subject]]
Evidence = dict[str, Estimate]
# The evidence that needs several seeds.
BELOW = "below"


def _difference(claim: Claim, compared: Compared) -> Evidence:
    """The first compared recipe minus the second, paired by the seeds that both have."""
    first, second = (subject.metrics.get(claim.statistic.quantity, {}) for subject in compared.values())
    seeds = sorted(set(first) & set(second))
    if not seeds:
        trouble = [subject.trouble for subject in compared.values() if subject.trouble]
        raise UndecidedError("; ".join(trouble) or "the recipes have no finished seed in common")
    samples = [[values[seed] for seed in seeds] for values in (first, second)]
    evidence = dict(zip(compared, map(statistics.mean_interval, samples), strict=True))
    evidence["difference"] = statistics.mean_interval([one - other for one, other in zip(*samples, strict=True)])
    if len(seeds) > 1:
        evidence[BELOW] = statistics.probability_below(*samples)
    for recipe, subject in compared.items():
        if beside := subject.metrics.get(claim.statistic.beside):
            evidence[f"beside_{recipe}"] = statistics.mean_interval(list(beside.values()))
    return evidence


def _ratio(claim: Claim, compared: Compared) -> Evidence:
    """One recipe's figure divided by the other's: the ratio of medians, over raw times or over seeds."""
    statistic = claim.statistic
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
    evidence = {recipe: statistics.median_interval(values) for recipe, values in samples.items()}
    if BELOW in claim.evidence and min(map(len, samples.values())) > 1:
        evidence[BELOW] = statistics.probability_below(*samples.values())
    return {**evidence, "ratio": statistics.ratio_of_medians(above, below)}


def _determinant(claim: Claim, compared: Compared) -> Evidence:
    """Exponents over the larger half of the widths, at least three of them."""
    subject = compared[claim.compares[0]]
    if (timings := subject.determinant) is None:
        raise UndecidedError(subject.trouble or "the determinant's cost was not measured")
    n = len(timings.widths)
    larger = slice(min(n // 2, max(n - 3, 0)), n)
    widths = timings.widths[larger]
    if len(widths) < 3:
        raise UndecidedError(f"an exponent needs three widths or more, and {n} were measured")
    diagonal, dense = (
        statistics.log_log_slope(widths, [float(np.median(samples)) for samples in times[larger]])
        for times in (timings.diagonal_ms, timings.slogdet_ms)
    )
    values = {"diagonal": diagonal, "dense": dense, "gap": dense - diagonal}
    return {name: Estimate(value, None, None, len(widths)) for name, value in values.items()}


def _figures(claim: Claim, compared: Compared) -> Evidence:
    """The figures of one recipe that the claim's evidence names: metrics, or one time divided by another."""
    subject = compared[claim.compares[0]]
    if claim.statistic.of_a_class and subject.classes == "all":
        raise UndecidedError("one model was trained for all classes, so none can be asked for a class")
    return {
        name: statistics.ratio_of_medians(*(subject.time(time).samples for time in label.times))
        if label.times
        else statistics.mean_interval(subject.metric(label.metric))
        for name, label in claim.evidence.items()
    }


STATISTICS: dict[Kind, Callable[[Claim, Compared], Evidence]] = {
    "difference": _difference,
    "ratio": _ratio,
    "determinant": _determinant,
    "figures": _figures,
}


@dataclass(frozen=True)
class Scale:
    """The size of the experiment on a data set: preset, whole data or a subset, and the recipes as in the paper."""

    preset: str
    title: str
    subset: bool
    as_in_paper: frozenset[str]

    def level(self, compared: Compared) -> Level:
        """The largest scale whose conditions the compared recipes meet."""
        if self.preset == "smoke" or self.subset:
            return "smoke"
        on_gpu = all(subject.devices == {"cuda"} for subject in compared.values())
        return "paper" if self.preset == "paper" and on_gpu and self.as_in_paper.issuperset(compared) else "laptop"

    def words(self, compared: Compared) -> str:
        """The scale as the report names it."""
        devices = sorted(set().union(*(subject.devices for subject in compared.values())))
        hardware = " and ".join({"cpu": "a CPU", "cuda": "a GPU"}.get(device, device) for device in devices)
        return f"{self.preset} preset{', subset of the data' if self.subset else ''}, on {hardware or 'no device'}"


def verdict_of(claim: Claim, evidence: Evidence) -> Verdict:
    """``replicated`` or ``not_replicated`` if all bounds of that side hold, ``partly`` otherwise."""
    if all(bounds.hold(evidence[name]) for name, bounds in claim.replicated.items()):
        return "replicated"
    if all(bounds.hold(evidence[name]) for name, bounds in claim.not_replicated.items()):
        return "not_replicated"
    return "partly"


def rule_in_words(claim: Claim) -> str:
    """The rule of a claim in words, generated from its bounds."""

    def side(conditions: Mapping[str, Bounds]) -> str:
        parts = []
        for name, bounds in conditions.items():
            label, unit = claim.evidence[name].label, claim.evidence[name].unit
            ends = [("≥", bounds.at_least), ("≤", bounds.at_most)]
            words = " and ".join(f"{sign} {end:,g}" for sign, end in ends if end is not None).replace("-", "−")
            parts.append(f"{label} {words}{f' {unit}' if unit else ''}")
        return " and ".join(parts)

    sentence = f"Replicated: {side(claim.replicated)}. Not replicated: {side(claim.not_replicated)}. Otherwise partly."
    scales = {"paper": "by the paper preset on a GPU only", "laptop": "from the laptop preset upwards"}
    sentence += f" Decided {scales[claim.needs]}."
    if claim.confirms:
        sentence += f" In the claim’s favour {scales[claim.confirms]}."
    return sentence


def _decide(claim: Claim, scale: Scale, compared: Compared) -> tuple[Verdict, str, Evidence]:
    """The verdict on one data set, its reason as a sentence, and the available evidence."""
    absent = [recipe for recipe in claim.compares if recipe not in compared]
    if absent:
        return "not_tested", f"The grid has no {' and no '.join(absent)}.", {}
    try:
        evidence = STATISTICS[claim.statistic.kind](claim, compared)
        if len({subject.devices for subject in compared.values()}) > 1:
            raise UndecidedError("the recipes ran on different devices", "not_comparable")
        if len({subject.classes for subject in compared.values()}) > 1:
            raise UndecidedError("one recipe has a model a class and the other one for all (classes)", "not_comparable")
    except UndecidedError as error:
        return error.verdict, f"{str(error)[:1].upper()}{str(error)[1:]}.", {}
    sentence = claim.sentence.format_map({name: format_number(number.value, 3) for name, number in evidence.items()})
    verdict = verdict_of(claim, evidence)
    level = LEVELS.index(scale.level(compared))
    if level < LEVELS.index(claim.needs):
        leaning = LEANINGS[verdict] if level else ""
        return "not_tested_at_this_scale", f"For orientation only: {sentence}{leaning}", evidence
    if verdict != "not_replicated" and level < LEVELS.index(claim.confirms or claim.needs):
        return "not_tested_at_this_scale", f"{sentence} A baseline this small cannot confirm the claim.", evidence
    return verdict, sentence, evidence


def _overall(verdicts: Sequence[Verdict]) -> Verdict:
    decided = {verdict for verdict in verdicts if verdict in LEANINGS}
    if decided:
        return decided.pop() if len(decided) == 1 else "partly"
    undecided: tuple[Verdict, ...] = ("not_comparable", "not_tested_at_this_scale", "not_tested")
    return next((verdict for verdict in undecided if verdict in verdicts), "not_tested")


def _evidence_json(claim: Claim, evidence: Evidence) -> list[dict[str, Any]]:
    """The evidence in the claim's order, with labels and units; the value of `BELOW` is None for a single seed."""
    nothing = {"value": None, "low": None, "high": None, "n": 1}
    return [
        {"name": name, "label": label.label, "unit": label.unit}
        | (asdict(evidence[name].rounded()) if name in evidence else nothing)
        for name, label in claim.evidence.items()
        if name in evidence or (evidence and name == BELOW)
    ]


def judge(claim: Claim, scales: Mapping[str, Scale], results: Subjects) -> dict[str, Any]:
    """One claim's verdicts, on each data set and overall, as plain values for JSON.

    Args:
        claim: The claim with its rule.
        scales: The scale of each data set's experiment.
        results: The figures by data set and recipe.
    """
    datasets: list[dict[str, Any]] = []
    for dataset, subjects in results.items():
        scale, compared = scales[dataset], {name: subjects[name] for name in claim.compares if name in subjects}
        verdict, sentence, evidence = _decide(claim, scale, compared)
        shown: dict[str, Any] = {"dataset": dataset, "title": scale.title, "verdict": verdict, "label": LABELS[verdict]}
        shown |= {"scale": scale.words(compared), "sentence": sentence, "evidence": _evidence_json(claim, evidence)}
        datasets.append(shown)
    overall = _overall([row["verdict"] for row in datasets])
    return {
        **claim.model_dump(include={"id", "title", "words", "source", "measure", "why"}),
        "rule": rule_in_words(claim),
        "verdict": overall,
        "label": LABELS[overall],
        "datasets": datasets,
    }


def claims_of(results: Results, paper: Params, subjects: Subjects) -> dict[str, Any]:
    """The content of `claims.json`: parts of `claims.yaml` for the report, and verdicts on the paper's data sets."""
    ours = results.params
    claims = load_claims()
    same = frozenset(
        name
        for name in ours.grid.recipes
        if name in paper.recipes and as_trained(ours.recipes[name]) == as_trained(paper.recipes[name])
    )
    scales = {
        name: Scale(ours.preset, dataset.title, bool(dataset.info["subset"]), same)
        for name, dataset in results.datasets.items()
        if dataset.in_paper
    }
    subjects = {name: subjects[name] for name in scales}
    return {
        **claims.model_dump(include={"paper", "principle", "poster", "references"}),
        "claims": [judge(claim, scales, subjects) for claim in claims.claims],
        "conversion": conversion_of(results, claims),
    }


def as_trained(recipe: Recipe) -> Recipe:
    """A recipe whatever the way in which its steps are computed, which depends on the machine."""
    if recipe.training is None:
        return recipe
    settings = {name: Training.model_fields[name].default for name in ("precision", "capture", "compile")}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=settings)})


def conversion_of(results: Results, claims: ClaimsFile) -> dict[str, Any]:
    """The poster's likelihoods and our own printed figures, converted to bits per pixel on each data set."""
    printed = next(row for row in claims.poster if row.quantity == "nll")
    codes: dict[released_bits.Code, float] = {"lunet": printed.lunet, "realnvp": printed.realnvp}
    poster = [
        {"title": dataset.title, "code": code, "printed": value}
        | {key: round_significant(bits) for key, bits in released_bits.poster_in_bits(dataset, code, value).items()}
        for dataset in results.datasets.values()
        if dataset.in_paper
        for code, value in codes.items()
    ]
    checks = []
    for cell in results.cells:
        recipe, dataset = results.params.recipe(cell.key.recipe), results.datasets[cell.key.dataset]
        test, per_class = cell.evaluation.test, cell.evaluation.per_class
        if test is None or per_class is None or test.poster_bits_per_pixel is None:
            continue
        if (value := converted(per_class, recipe, dataset)) is not None:
            bits = {"printed": test.poster_bits_per_pixel, "converted": value, "honest": test.bits_per_dim.mean}
            rounded = {name: round_significant(value) for name, value in bits.items()}
            checks.append({"title": dataset.title, **cell.key._asdict(), **rounded})
    return {"poster": poster, "checks": checks}


def converted(per_class: Mapping[str, Likelihood], recipe: Recipe, dataset: Dataset) -> float | None:
    """A printed figure converted to bits per pixel with the data's Jacobian alone, to check against the honest one.

    ``None`` if a class has no printed figure.
    """
    code = released_bits.released_code(recipe)
    margin = recipe.margin if isinstance(recipe.margin, tuple) else (recipe.margin, recipe.margin)
    total = 0.0
    for label, likelihood in per_class.items():
        if likelihood.poster_bits_per_pixel is None:
            return None
        factor = released_bits.batch_factor(likelihood.images if recipe.classes == "each" else len(dataset.test_images))
        logit = released_bits.logit_bits(dataset.test_images[dataset.test_labels == int(label)], margin)
        bits = released_bits.to_bits_per_dim(likelihood.poster_bits_per_pixel, code, logit, factor)
        total += likelihood.images * bits
    return total / len(dataset.test_images)
