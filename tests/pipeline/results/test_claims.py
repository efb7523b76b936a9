"""Tests that `poster.yaml` contains the printed figures, and that an invalid rule is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.console import UserError
from pipeline.results.claims import CLAIMS, Bounds, load_claims, load_poster
from pipeline.results.statistics import Estimate


def test_the_poster_s_table_has_the_printed_figures() -> None:
    table = {row.quantity: (row.lunet, row.realnvp) for row in load_poster().poster}
    assert table == {
        "memory": (1127, 3725),
        "epochs": (40, 100),
        "nll": (3.2424, 5.6819),
        "step": (1.2, 56.0),
        "density": (37.10, 259.15),
        "sampling": (45.15, 1.03),
    }
    factors = next(row.factors for row in load_poster().poster if row.quantity == "density")
    assert factors is not None
    assert 37.10 / factors["lunet"] == pytest.approx(0.158, abs=5e-4)
    assert 259.15 / factors["realnvp"] == pytest.approx(0.553, abs=5e-4)


def test_a_rule_about_unknown_evidence_is_refused(tmp_path: Path) -> None:
    text = CLAIMS.read_text(encoding="utf-8")
    broken = tmp_path / "claims.yaml"
    broken.write_text(text.replace("replicated: {share:", "replicated: {shear:", 1), encoding="utf-8")
    with pytest.raises(UserError, match="'shear', which its evidence lacks"):
        load_claims(broken)


def test_a_rule_has_the_date_of_its_last_change(tmp_path: Path) -> None:
    broken = tmp_path / "claims.yaml"
    text = CLAIMS.read_text(encoding="utf-8")
    broken.write_text(text.replace("    date: 2026-11-28\n", "    date: 2026-11-29\n", 1), encoding="utf-8")
    with pytest.raises(UserError, match="history of 'memory' must be in order of dates, and end at that of the rule"):
        load_claims(broken)


def test_every_rule_that_changed_says_what_it_was_and_that_results_had_been_seen() -> None:
    claims = {claim.id: claim for claim in load_claims().claims}
    assert all(claim.history[-1].after_results and claim.history[-1].change for claim in claims.values())
    assert [f"{change.date}" for change in claims["likelihood"].history] == ["2026-11-26", "2026-11-28"]


def test_an_interval_keeps_leaves_or_crosses_a_bound_and_none_does_neither() -> None:
    bounds = Bounds(at_least=0, at_most=2)
    for low, high, expected in (
        (0, 2, (True, False)),
        (-1, 1, (False, False)),
        (1, 3, (False, False)),
        (-2, -1, (False, True)),
        (2.5, 3, (False, True)),
        (None, None, (False, False)),
    ):
        estimate = Estimate(1.0, low, high, 3)
        assert (bounds.hold(estimate), bounds.exclude(estimate)) == expected


@pytest.mark.parametrize("source", ["", ", metric: pixels_lost, times: [step_ms, step_ms]"])
def test_evidence_without_a_source_or_with_two_is_refused(tmp_path: Path, source: str) -> None:
    broken = tmp_path / "claims.yaml"
    text = CLAIMS.read_text(encoding="utf-8").replace(", metric: pixels_lost", source, 1)
    broken.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="'lost' of 'inverse' must have either a metric or two times"):
        load_claims(broken)
