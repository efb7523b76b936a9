"""Tests that `claims.yaml` contains the poster's figures, and that an invalid rule is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.console import UserError
from pipeline.results.claims import CLAIMS, load_claims


def test_the_poster_s_table_has_the_printed_figures() -> None:
    table = {row.quantity: (row.lunet, row.realnvp) for row in load_claims().poster}
    assert table == {
        "memory": (1127, 3725),
        "epochs": (40, 100),
        "nll": (3.2424, 5.6819),
        "step": (1.2, 56.0),
        "density": (37.10, 259.15),
        "sampling": (45.15, 1.03),
    }
    factors = next(row.factors for row in load_claims().poster if row.quantity == "density")
    assert factors is not None
    assert 37.10 / factors["lunet"] == pytest.approx(0.158, abs=5e-4)
    assert 259.15 / factors["realnvp"] == pytest.approx(0.553, abs=5e-4)


def test_a_rule_about_unknown_evidence_is_refused(tmp_path: Path) -> None:
    text = CLAIMS.read_text(encoding="utf-8")
    broken = tmp_path / "claims.yaml"
    broken.write_text(text.replace("replicated: {accuracy:", "replicated: {acuracy:", 1), encoding="utf-8")
    with pytest.raises(UserError, match="'acuracy', which its evidence lacks"):
        load_claims(broken)


@pytest.mark.parametrize("source", ["", ", metric: pixels_lost, times: [step_ms, step_ms]"])
def test_evidence_without_a_source_or_with_two_is_refused(tmp_path: Path, source: str) -> None:
    broken = tmp_path / "claims.yaml"
    text = CLAIMS.read_text(encoding="utf-8").replace(", metric: pixels_lost", source, 1)
    broken.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="'lost' of 'inverse' must have either a metric or two times"):
        load_claims(broken)
