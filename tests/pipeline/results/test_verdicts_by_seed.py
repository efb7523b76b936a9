"""The verdicts on single seeds of the kept laptop run: they hardly depend on the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.presets.merged import load_preset
from pipeline.results.claims import DECISIONS
from pipeline.results.kept import Kept, read_run
from pipeline.results.subjects import Subject
from pipeline.results.verdicts import judgements

RUN = Path(__file__).parents[3] / "reports/published/laptop-seeds"


def of_seed(subject: Subject, seed: int) -> Subject:
    """The figures of one seed alone."""

    def alone(by_seed: Mapping[int, Any]) -> dict[int, Any]:
        return {own: value for own, value in by_seed.items() if own == seed}

    return replace(
        subject,
        metrics={name: alone(values) for name, values in subject.metrics.items()},
        by_class={name: alone(values) for name, values in subject.by_class.items()},
        curves=alone(subject.curves),
        class_samples={name: alone(samples) for name, samples in subject.class_samples.items()},
    )


@pytest.fixture(scope="module")
def run() -> Kept:
    return read_run(RUN)


@pytest.fixture(scope="module")
def by_seed(run: Kept) -> list[dict[str, str]]:
    """The verdicts that each finished seed would have as a run of its own, with the spread of all as a kept run's."""
    verdicts = []
    unfinished = {cell.seed for cell in run.results.statuses if cell.status != "complete"}
    for seed in sorted({*run.results.params.grid.seeds} - unfinished):
        subjects = {
            dataset: {recipe: of_seed(subject, seed) for recipe, subject in recipes.items()}
            for dataset, recipes in run.subjects.items()
        }
        claims = judgements(run.results, load_preset("paper"), subjects, [run])
        verdicts.append({claim["id"]: claim["verdict"] for claim in claims})
    return verdicts


def test_each_verdict_is_the_same_for_four_of_five_seeds_or_more(by_seed: list[dict[str, str]]) -> None:
    assert len(by_seed) >= 3
    for claim in by_seed[0]:
        votes = Counter(verdicts[claim] for verdicts in by_seed)
        assert votes.most_common(1)[0][1] >= 0.8 * len(by_seed), (claim, votes)


def test_no_seed_contradicts_all_together(run: Kept, by_seed: list[dict[str, str]]) -> None:
    together = {claim["id"]: claim["verdict"] for claim in judgements(run.results, load_preset("paper"), run.subjects)}
    assert {"replicated", "not_replicated"} <= {*together.values()}
    for claim, verdict in together.items():
        others = {verdicts[claim] for verdicts in by_seed} & {*DECISIONS}
        assert verdict not in DECISIONS or others <= {verdict}, claim
