"""From evidence to verdicts, by the rules of `claims.yaml` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.params import Params, Preset
from pipeline.results.claims import LABELS, Bounds, Claim, Label, Level, Verdict, load_claims
from pipeline.results.conversion import conversion_of
from pipeline.results.evidence import BELOW, STATISTICS, DifferentError, Evidence, MissingError, Subject
from pipeline.results.metrics import Subjects
from pipeline.results.reading import Results
from pipeline.results.statistics import (
    rounded,
    shown,
)

# What is said of a figure at a scale where the claim is not decided, by the verdict that its bounds would give; not of
# smoke's.
LEANINGS: dict[Verdict, str] = {
    "replicated": " By the same bounds the claim would hold here.",
    "partly": " By the same bounds the claim would hold in part here.",
    "not_replicated": " By the same bounds the claim would not hold here.",
}
DECIDED: tuple[Verdict, ...] = ("replicated", "partly", "not_replicated")
LEVELS: tuple[Level, ...] = ("smoke", "laptop", "paper")


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


def verdict_of(claim: Claim, evidence: Evidence) -> Verdict:
    """Replicated or not where all bounds of that side hold, partly otherwise."""
    if all(bounds.hold(evidence[name]) for name, bounds in claim.replicated.items()):
        return "replicated"
    if all(bounds.hold(evidence[name]) for name, bounds in claim.not_replicated.items()):
        return "not_replicated"
    return "partly"


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


def claims_of(results: Results, paper: Params, subjects: Subjects) -> dict[str, Any]:
    """The content of `claims.json`: all of `claims.yaml` that a reader needs, and the verdicts on the paper's data."""
    ours = results.params
    claims = load_claims()
    same = frozenset(name for name in ours.grid.recipes if ours.recipes[name] == paper.recipes.get(name))
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
