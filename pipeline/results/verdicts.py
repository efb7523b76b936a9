"""The content of `claims.json`: the rules of `claims.yaml` applied to the evidence, and printed figures converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pipeline.core.dataset import Dataset
from pipeline.core.params import Params, Recipe
from pipeline.evaluation import released_bits
from pipeline.evaluation.record import Likelihood
from pipeline.results.claims import LABELS, Bounds, Claim, ClaimsFile, Level, Verdict, load_claims
from pipeline.results.evidence import BELOW, STATISTICS, Evidence, Subject, UndecidedError
from pipeline.results.metrics import Subjects
from pipeline.results.reading import Results
from pipeline.results.statistics import format_number, round_significant

# The verdicts that decide a claim, with what is added to its sentence where the scale is too small to decide it and its
# bounds would give that verdict; the smoke preset adds nothing.
LEANINGS: dict[Verdict, str] = {
    "replicated": " By the same bounds the claim would hold here.",
    "partly": " By the same bounds the claim would hold in part here.",
    "not_replicated": " By the same bounds the claim would not hold here.",
}
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Scale:
    """The size of the experiment on a data set: preset, whole data or a subset, and the recipes as in the paper."""

    preset: str
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


def _decide(claim: Claim, scale: Scale, subjects: Mapping[str, Subject]) -> tuple[Verdict, str, Evidence]:
    """The verdict on one data set, its reason as a sentence, and the available evidence."""
    absent = [recipe for recipe in claim.compares if recipe not in subjects]
    if absent:
        return "not_tested", f"The grid has no {' and no '.join(absent)}.", {}
    compared = [subjects[recipe] for recipe in claim.compares]
    try:
        evidence = STATISTICS[claim.statistic.kind](claim, subjects)
        if len({subject.devices for subject in compared}) > 1:
            raise UndecidedError("the recipes ran on different devices", "not_comparable")
        if len({subject.classes for subject in compared}) > 1:
            raise UndecidedError("one recipe has a model a class and the other one for all (classes)", "not_comparable")
    except UndecidedError as error:
        return error.verdict, f"{str(error)[:1].upper()}{str(error)[1:]}.", {}
    sentence = claim.sentence.format_map({name: format_number(number.value, 3) for name, number in evidence.items()})
    verdict = verdict_of(claim, evidence)
    level = LEVELS.index(scale.level(compared, claim.compares))
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


def judge(claim: Claim, scales: Mapping[str, Scale], results: Mapping[str, Mapping[str, Subject]]) -> dict[str, Any]:
    """One claim's verdicts, on each data set and overall, as plain values for JSON.

    Args:
        claim: The claim with its rule.
        scales: The scale of each data set's experiment.
        results: The figures by data set and recipe.
    """
    datasets: list[dict[str, Any]] = []
    for dataset, subjects in results.items():
        scale = scales[dataset]
        verdict, sentence, evidence = _decide(claim, scale, subjects)
        compared = [subjects[recipe] for recipe in claim.compares if recipe in subjects]
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
