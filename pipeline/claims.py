"""The paper's claims, and the evaluator that turns figures into verdicts by the rules of `claims.yaml` alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from pipeline.console import UserError
from pipeline.params import Name, Preset, Section, read_yaml
from pipeline.statistics import (
    Estimate,
    log_log_slope,
    mean_interval,
    median_interval,
    probability_below,
    ratio_of_medians,
    rounded,
)

CLAIMS = Path(__file__).with_name("claims.yaml")
SHOWN = 10  # mistakes
RESTORE = "Mend it, or take it as it was with: git checkout pipeline/claims.yaml"

Verdict = Literal["replicated", "partly", "not_replicated", "not_tested_at_this_scale", "not_tested", "not_comparable"]
LABELS: dict[Verdict, str] = {
    "replicated": "Replicated",
    "partly": "Partly replicated",
    "not_replicated": "Not replicated",
    "not_tested_at_this_scale": "Not tested at this scale",
    "not_tested": "Not tested",
    "not_comparable": "Not comparable",
}
# What is said of a figure at a scale where the claim is not decided, by the verdict that its bounds would give; not of
# smoke's.
LEANINGS: dict[Verdict, str] = {
    "replicated": " By the same bounds the claim would hold here.",
    "partly": " By the same bounds the claim would hold in part here.",
    "not_replicated": " By the same bounds the claim would not hold here.",
}
DECIDED: tuple[Verdict, ...] = ("replicated", "partly", "not_replicated")

Level = Literal["smoke", "laptop", "paper"]
LEVELS: tuple[Level, ...] = ("smoke", "laptop", "paper")
Number = Annotated[float, Field(strict=False, allow_inf_nan=False)]


class Bounds(Section):
    """Where a number must lie, ends included."""

    at_least: Number | None = None
    at_most: Number | None = None

    def hold(self, estimate: Estimate) -> bool:
        """Whether the whole interval lies within."""
        above = self.at_least is None or estimate.least >= self.at_least
        return above and (self.at_most is None or estimate.most <= self.at_most)


class Statistic(Section):
    """What is computed: a kind of `STATISTICS`, and for comparisons of which quantity and recipes."""

    kind: Literal["difference", "ratio", "inverse", "determinant", "likelihood", "samples"]
    quantity: str = ""
    beside: str = ""
    above: Name = "lunet"
    below: Name = "realnvp"
    per_image: bool = False


class Label(Section):
    """What a number of the evidence is called, and its unit."""

    label: str
    unit: str


class Claim(Section):
    """A claim of the paper with the rule that decides it."""

    id: Name
    title: str
    words: str
    source: str
    needs: Literal["laptop", "paper"]
    confirms: Literal["paper"] | None = None
    compares: list[Name] = Field(min_length=1)
    statistic: Statistic
    measure: str
    evidence: dict[str, Label]
    replicated: dict[str, Bounds]
    not_replicated: dict[str, Bounds]
    sentence: str
    why: str

    @model_validator(mode="after")
    def _rules_name_evidence(self) -> Self:
        for name in [*self.replicated, *self.not_replicated]:
            if name not in self.evidence:
                raise ValueError(f"the rule of {self.id!r} names {name!r}, which its evidence lacks")
        return self


class PosterRow(Section):
    """A row of the poster's table, what it is, and where our figures for it stand."""

    quantity: Name
    label: str
    unit: str
    lunet: Number
    realnvp: Number
    ours: str
    stopwatch: str | None
    figure: str | None
    factors: dict[Name, Number] | None
    note: str


class Reference(Section):
    """A published figure in bits per pixel of the 8-bit image."""

    dataset: Name
    label: str
    value: Number
    checked: bool
    source: str


class Paper(Section):
    """The paper that is replicated."""

    title: str
    authors: str
    year: int
    arxiv: str


class ClaimsFile(Section):
    """All of `claims.yaml`."""

    paper: Paper
    principle: list[str]
    poster: list[PosterRow]
    references: list[Reference]
    claims: list[Claim]


def load_claims(path: Path = CLAIMS) -> ClaimsFile:
    """Read and check the claims; a mistake is a `UserError` that names its place."""
    try:
        values = read_yaml(path)
        # YAML that is cut off within a text is YAML still, with fewer claims.
        if values is not None and not path.read_bytes().endswith(b"\n"):
            raise UserError(f"{path} is cut off: it ends within a line")
        return ClaimsFile.model_validate(values)
    except UserError as error:
        raise UserError(f"{error}\n{RESTORE}") from None
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        lines = [f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}" for mistake in mistakes[:SHOWN]]
        more = [f"and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
        raise UserError("\n  ".join([f"{path.name} is not as it should be:", *lines, *more]) + f"\n{RESTORE}") from None


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
    """What was found of one recipe on one data set; ``trouble`` says why a figure may be missing."""

    metrics: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    times: Mapping[str, Times] = field(default_factory=dict)
    determinant: Mapping[str, Any] | None = None
    classes: str | None = None
    devices: frozenset[str] = frozenset()
    machines: frozenset[str] = frozenset()
    trouble: str | None = None


@dataclass(frozen=True)
class Scale:
    """How large the experiment on a data set is: the preset, all data or a subset, which recipes are the paper's."""

    preset: Preset
    title: str
    subset: bool
    as_in_paper: frozenset[str]

    def level(self, subjects: Sequence[Subject], recipes: Sequence[str]) -> Level:
        """The largest scale whose conditions the compared recipes meet."""
        if self.preset == "smoke" or self.subset:
            return "smoke"
        on_gpu = all(subject.devices == {"cuda"} for subject in subjects)
        return "paper" if self.preset == "paper" and on_gpu and self.as_in_paper.issuperset(recipes) else "laptop"

    def words(self, subjects: Sequence[Subject]) -> str:
        """The scale as the report names it."""
        devices = sorted(set().union(*(subject.devices for subject in subjects)))
        places = " and ".join({"cpu": "a CPU", "cuda": "a GPU"}.get(device, device) for device in devices)
        return f"{self.preset} preset{', subset of the data' if self.subset else ''}, on {places or 'no device'}"


class MissingError(Exception):
    """A figure that a claim needs is not there; the message says which and why."""


class DifferentError(Exception):
    """Two recipes cannot be compared; the message says why."""


Evidence = dict[str, Estimate]
# The evidence that only several seeds give.
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
    """LU-Net minus RealNVP, paired by the seeds that both have."""
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
    """One recipe's figure over the other's: medians of raw times, or means over seeds."""
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
    found = subject.determinant
    if found is None:
        raise MissingError(subject.trouble or "the determinant's cost was not measured")
    widths = found["widths"]
    first = min(len(widths) // 2, max(len(widths) - 3, 0))
    if len(widths) - first < 3:
        raise MissingError(f"an exponent needs three widths or more, and {len(widths)} were measured")
    n = len(widths) - first

    def slope(name: str) -> float:
        return log_log_slope(widths[first:], [float(np.median(samples)) for samples in found[name][first:]])

    diagonal, dense = slope("diagonal_ms"), slope("slogdet_ms")
    values = {"diagonal": diagonal, "dense": dense, "gap": dense - diagonal}
    return {name: Estimate(value, None, None, n) for name, value in values.items()}


def _likelihood(claim: Claim, subjects: Mapping[str, Subject]) -> Evidence:
    subject = subjects[claim.compares[0]]
    found = ("mean", "variance", "variance_min", "variance_max", "radius_distance")
    return {
        "improvement": _metric(subject, "holdout_improvement"),
        **{name: _metric(subject, f"latent_{name}") for name in found},
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


def verdict_of(claim: Claim, evidence: Evidence) -> Verdict:
    """Replicated or not where all bounds of that side hold, partly otherwise."""
    if all(bounds.hold(evidence[name]) for name, bounds in claim.replicated.items()):
        return "replicated"
    if all(bounds.hold(evidence[name]) for name, bounds in claim.not_replicated.items()):
        return "not_replicated"
    return "partly"


def shown(value: float, digits: int = 4) -> str:
    """A number for readers: that many significant digits, thousands set apart, a proper minus sign."""
    value = rounded(value, 9)
    whole = value.is_integer() or abs(value) >= 1000
    text = f"{value:,.0f}" if whole else f"{value:#.{digits}g}".removesuffix(".")
    return text.replace("-", "−")


def rule_in_words(claim: Claim) -> str:
    """The two bounds as a sentence, made from the bounds themselves."""

    def side(conditions: Mapping[str, Bounds]) -> str:
        parts = []
        for name, bounds in conditions.items():
            label, unit = claim.evidence[name].label, claim.evidence[name].unit
            ends = [("≥", bounds.at_least), ("≤", bounds.at_most)]
            words = " and ".join(f"{sign} {end:,g}" for sign, end in ends if end is not None).replace("-", "−")
            parts.append(f"{label} {words}{f' {unit}' if unit else ''}")
        return " and ".join(parts)

    sentence = f"Replicated: {side(claim.replicated)}. Not replicated: {side(claim.not_replicated)}. Otherwise partly."
    place = {"paper": "by the paper preset on a GPU only", "laptop": "from the laptop preset upwards"}
    sentence += f" Decided {place[claim.needs]}."
    if claim.confirms:
        sentence += f" In the claim’s favour {place[claim.confirms]}."
    return sentence


def _decide(claim: Claim, scale: Scale, subjects: Mapping[str, Subject]) -> tuple[Verdict, str, Evidence]:
    """The verdict on one data set, why, and the evidence as far as there is any."""
    absent = [recipe for recipe in claim.compares if recipe not in subjects]
    if absent:
        return "not_tested", f"The grid has no {' and no '.join(absent)}.", {}
    compared = [subjects[recipe] for recipe in claim.compares]
    try:
        evidence = STATISTICS[claim.statistic.kind](claim, subjects)
        if len({subject.devices for subject in compared}) > 1:
            raise DifferentError("the recipes ran on different devices")
        if len({subject.classes for subject in compared}) > 1:
            raise DifferentError("one recipe has a model a class and the other one for all (classes)")
    except MissingError as reason:
        return "not_tested", f"{_capital(str(reason))}.", {}
    except DifferentError as reason:
        return "not_comparable", f"{_capital(str(reason))}.", {}
    values = {name: shown(estimate.value, 3) for name, estimate in evidence.items()}
    sentence = claim.sentence.format_map(values)
    verdict = verdict_of(claim, evidence)
    level = LEVELS.index(scale.level(compared, claim.compares))
    if level < LEVELS.index(claim.needs):
        leaning = LEANINGS[verdict] if level else ""
        return "not_tested_at_this_scale", f"For orientation only: {sentence}{leaning}", evidence
    if verdict != "not_replicated" and level < LEVELS.index(claim.confirms or claim.needs):
        return "not_tested_at_this_scale", f"{sentence} A baseline this small cannot confirm the claim.", evidence
    return verdict, sentence, evidence


def _overall(verdicts: Sequence[Verdict]) -> Verdict:
    decided = {verdict for verdict in verdicts if verdict in DECIDED}
    if decided:
        return decided.pop() if len(decided) == 1 else "partly"
    undecided: tuple[Verdict, ...] = ("not_comparable", "not_tested_at_this_scale", "not_tested")
    return next((verdict for verdict in undecided if verdict in verdicts), "not_tested")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _as_json(claim: Claim, evidence: Evidence) -> list[dict[str, Any]]:
    """The evidence in the claim's order, with labels and units; without a value what one seed cannot give."""

    def row(name: str, label: Label) -> dict[str, Any]:
        found = evidence.get(name)
        numbers = (None, None, None) if found is None else (found.value, found.low, found.high)
        value, low, high = (None if number is None else rounded(number) for number in numbers)
        about = {"name": name, "label": label.label, "unit": label.unit}
        return {**about, "value": value, "low": low, "high": high, "n": 1 if found is None else found.n}

    there = {*evidence, BELOW} if evidence else set()
    return [row(name, label) for name, label in claim.evidence.items() if name in there]


def judge(claim: Claim, scales: Mapping[str, Scale], results: Mapping[str, Mapping[str, Subject]]) -> dict[str, Any]:
    """One claim's verdicts, on each data set and overall, as plain values for JSON.

    Args:
        claim: The claim with its rule.
        scales: The scale of each data set's experiment.
        results: What was found, by data set and recipe.
    """
    datasets: list[dict[str, Any]] = []
    verdicts: list[Verdict] = []
    for dataset, subjects in results.items():
        verdict, sentence, evidence = _decide(claim, scales[dataset], subjects)
        compared = [subjects[recipe] for recipe in claim.compares if recipe in subjects]
        verdicts.append(verdict)
        datasets.append(
            {
                "dataset": dataset,
                "title": scales[dataset].title,
                "verdict": verdict,
                "label": LABELS[verdict],
                "scale": scales[dataset].words(compared),
                "sentence": sentence,
                "evidence": _as_json(claim, evidence),
            }
        )
    overall = _overall(verdicts)
    return {
        **claim.model_dump(include={"id", "title", "words", "source", "measure", "why"}),
        "rule": rule_in_words(claim),
        "verdict": overall,
        "label": LABELS[overall],
        "datasets": datasets,
    }
