"""The content of `claims.json`: the rules of `claims.yaml` applied to the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from pipeline.core.params import Params, Recipe, Training
from pipeline.results.claim_statistics import Evidence, KeptRuns, evidence_of
from pipeline.results.claims import DECISIONS, LABELS, Bounds, Claim, Decision, Level, Verdict, load_claims, load_poster
from pipeline.results.conversion import conversion_of
from pipeline.results.kept import Kept
from pipeline.results.reading import Results
from pipeline.results.statistics import format_number
from pipeline.results.subjects import Compared, Subject, Subjects, UndecidedError

LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Scale:
    """The size of the experiment on a data set: preset, whole data or a subset, and what is as in the paper preset."""

    preset: str
    title: str
    subset: bool
    as_in_paper: frozenset[str]  # the recipes
    large_batch_as_in_paper: bool

    def level(self, claim: Claim, compared: Compared) -> Level:
        """The largest scale whose conditions the recipes that the claim compares meet."""
        if self.preset == "smoke" or self.subset:
            return "smoke"
        on_gpu = all(subject.devices == {"cuda"} for subject in compared.values())
        as_measured = self.large_batch_as_in_paper or claim.statistic.kind not in ("times", "memory")
        as_in_paper = self.as_in_paper.issuperset(compared) and as_measured
        return "paper" if self.preset == "paper" and on_gpu and as_in_paper else "laptop"

    def words(self, compared: Compared) -> str:
        """The scale as the report names it."""
        devices = sorted(set().union(*(subject.devices for subject in compared.values())))
        hardware = " and ".join({"cpu": "a CPU", "cuda": "a GPU"}.get(device, device) for device in devices)
        return f"{self.preset} preset{', subset of the data' if self.subset else ''}, on {hardware or 'no device'}"


def verdict_of(claim: Claim, evidence: Evidence) -> Verdict:
    """A decision if the intervals leave no other, and ``undecided`` otherwise.

    ``replicated`` or ``not_replicated`` if each interval lies within that side's bound; ``partly`` if on either side
    some interval lies wholly outside its bound.
    """
    sides: dict[Decision, dict[str, Bounds]] = {
        "replicated": claim.replicated,
        "not_replicated": claim.not_replicated,
    }
    for decision, side in sides.items():
        if all(bounds.hold(evidence[name]) for name, bounds in side.items()):
            return decision
    if all(any(bounds.exclude(evidence[name]) for name, bounds in side.items()) for side in sides.values()):
        return "partly"
    return "undecided"


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

    sentence = f"Replicated: {side(claim.replicated)}. Not replicated: {side(claim.not_replicated)}."
    sentence += " Partly: wholly outside both. Undecided: an interval reaches across a bound, or there is none."
    scales = {"paper": "by the paper preset on a GPU only", "laptop": "from the laptop preset upwards"}
    sentence += f" Decided {scales[claim.needs]}."
    if claim.confirms:
        sentence += f" In the claim’s favour {scales[claim.confirms]}."
    return sentence


def _decide(claim: Claim, scale: Scale, compared: Compared, kept: KeptRuns) -> tuple[Verdict, str, Evidence]:
    """The verdict on one data set, its reason as a sentence, and the available evidence."""
    absent = [recipe for recipe in claim.compares if recipe not in compared]
    if absent:
        return "not_tested", f"The grid has no {' and no '.join(absent)}.", {}
    level = LEVELS.index(scale.level(claim, compared))
    is_small = level < LEVELS.index(claim.needs)
    try:
        evidence = evidence_of(claim, compared, kept)
        if len({subject.devices for subject in compared.values()}) > 1:
            raise UndecidedError("the recipes ran on different devices", "not_comparable")
        if len({subject.classes for subject in compared.values()}) > 1:
            raise UndecidedError("one recipe has a model a class and the other one for all (classes)", "not_comparable")
    except UndecidedError as error:
        verdict = "not_tested_at_this_scale" if is_small and error.verdict == "undecided" else error.verdict
        return verdict, f"{str(error)[:1].upper()}{str(error)[1:]}.", {}
    sentence = claim.sentence.format_map({name: format_number(number.value, 3) for name, number in evidence.items()})
    if is_small:
        return "not_tested_at_this_scale", f"For orientation only: {sentence}", evidence
    verdict = verdict_of(claim, evidence)
    if verdict == "undecided":
        missing = any(evidence[name].low is None for name in claim.judged)
        reason = "Without an interval this decides nothing" if missing else "The interval reaches across a bound"
        return verdict, f"{sentence} {reason}.", evidence
    if verdict != "not_replicated" and level < LEVELS.index(claim.confirms or claim.needs):
        return "not_tested_at_this_scale", f"{sentence} A baseline this small cannot confirm the claim.", evidence
    return verdict, sentence, evidence


def _overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on which all data sets agree, ``partly`` if they differ; one without a decision leaves it open."""
    decided = {verdict for verdict in verdicts if verdict in DECISIONS}
    if len(decided) > 1 or "partly" in decided:
        return "partly"
    if decided:
        return verdicts[0] if decided.issuperset(verdicts) else "undecided"
    order: tuple[Verdict, ...] = ("undecided", "not_comparable", "not_tested_at_this_scale")
    return next((verdict for verdict in order if verdict in verdicts), "not_tested")


def _evidence_json(claim: Claim, evidence: Evidence) -> list[dict[str, Any]]:
    """The evidence in the claim's order, with labels and units."""
    return [
        {"name": name, "label": label.label, "unit": label.unit, **asdict(evidence[name].rounded())}
        for name, label in claim.evidence.items()
        if name in evidence
    ]


def judge(
    claim: Claim,
    scales: Mapping[str, Scale],
    results: Subjects,
    kept: Mapping[str, KeptRuns] | None = None,
) -> dict[str, Any]:
    """One claim's verdicts, on each data set and overall, as plain values for JSON.

    Args:
        claim: The claim with its rule.
        scales: The scale of each data set's experiment.
        results: The figures by data set and recipe.
        kept: For each data set the figures, by run and recipe, of kept runs of the same recipes on the same data.
    """
    if claim.once and results:
        scales, results = _once(claim, scales, results)
    datasets: list[dict[str, Any]] = []
    for dataset, subjects in results.items():
        scale, compared = scales[dataset], {name: subjects[name] for name in claim.compares if name in subjects}
        repeats = {
            run: {name: recipes[name] for name in claim.compares}
            for run, recipes in (kept or {}).get(dataset, {}).items()
            if recipes.keys() >= {*claim.compares}
        }
        verdict, sentence, evidence = _decide(claim, scale, compared, repeats)
        shown: dict[str, Any] = {"dataset": dataset, "title": scale.title, "verdict": verdict, "label": LABELS[verdict]}
        shown |= {"scale": scale.words(compared), "sentence": sentence, "evidence": _evidence_json(claim, evidence)}
        datasets.append(shown)
    overall = _overall([row["verdict"] for row in datasets if claim.decided_on in (None, row["dataset"])])
    return {
        **claim.model_dump(
            mode="json",
            include={"id", "title", "words", "source", "measure", "interval", "reason", "date", "history", "once"},
        ),
        "rule": rule_in_words(claim),
        "verdict": overall,
        "label": LABELS[overall],
        "datasets": datasets,
    }


def _once(
    claim: Claim, scales: Mapping[str, Scale], results: Subjects
) -> tuple[Mapping[str, Scale], Mapping[str, Mapping[str, Subject]]]:
    """The first recipe that has the figure, in the place of the compared one, on all data at once."""
    every = [subject for subjects in results.values() for subject in subjects.values()]
    ours = [subjects[claim.compares[0]] for subjects in results.values() if claim.compares[0] in subjects]
    found = next((subject for subject in [*ours, *every] if subject.determinant), next(iter(ours), None))
    scale = replace(next(iter(scales.values())), title="All data sets", subset=False)
    return {"all": scale}, {"all": {claim.compares[0]: found} if found else {}}


def judgements(results: Results, paper: Params, subjects: Subjects, kept: Sequence[Kept] = ()) -> list[dict[str, Any]]:
    """The judged claims of a run, on the paper's data sets.

    Args:
        results: The records of the run.
        paper: The parameters of the paper's scale.
        subjects: The run's figures by data set and recipe.
        kept: Published runs, whose spread over seeds may stand in for that of this run.
    """
    ours = results.params
    as_in_paper = frozenset(_identical(ours, paper))
    large_batch = ours.measure.large_batch == paper.measure.large_batch
    scales = {
        name: Scale(ours.preset, dataset.title, bool(dataset.info["subset"]), as_in_paper, large_batch)
        for name, dataset in results.datasets.items()
        if dataset.in_paper
    }
    repeats = {
        name: {
            run.name: {recipe: run.subjects[name][recipe] for recipe in _identical(ours, run.results.params)}
            for run in kept
            if name in run.subjects
            and run.results.datasets[name].info["sha256"] == results.datasets[name].info["sha256"]
        }
        for name in scales
    }
    return [judge(claim, scales, {name: subjects[name] for name in scales}, repeats) for claim in load_claims().claims]


def claims_of(results: Results, paper: Params, subjects: Subjects, kept: Sequence[Kept] = ()) -> dict[str, Any]:
    """The content of `claims.json`: the files in YAML, the verdicts on this run, and those on each kept run."""
    poster = load_poster()
    return {
        **load_claims().model_dump(include={"principle"}),
        **poster.model_dump(),
        "claims": judgements(results, paper, subjects, kept),
        "kept": {
            run.name: [
                {key: claim[key] for key in ("id", "title", "verdict", "label")}
                for claim in judgements(run.results, paper, run.subjects, kept)
            ]
            for run in kept
        },
        "conversion": conversion_of(results, poster),
    }


def _identical(ours: Params, theirs: Params) -> list[str]:
    """The recipes of both grids that are trained alike."""
    return [
        name
        for name in ours.grid.recipes
        if name in theirs.grid.recipes and as_trained(ours.recipes[name]) == as_trained(theirs.recipes[name])
    ]


def as_trained(recipe: Recipe) -> Recipe:
    """A recipe whatever the way in which its steps are computed, which depends on the machine."""
    if recipe.training is None:
        return recipe
    settings = {name: Training.model_fields[name].default for name in ("precision", "capture", "compile")}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=settings)})
