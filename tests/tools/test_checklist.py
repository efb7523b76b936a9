"""The document with what a reviewer may ask."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.core.console import UserError
from pipeline.core.params import read_yaml
from pipeline.presets.merged import load_preset
from tools.checklist import FILE, REASONS, ROOT, checklist, deviations, noise, sweep

HAS_OTHER_RESULTS = subprocess.run(
    ["git", "diff", "--quiet", "HEAD", "--", "reports"], cwd=ROOT, check=False
).returncode


@pytest.fixture(scope="module")
def document() -> str:
    return FILE.read_text(encoding="utf-8")


@pytest.mark.skipif(HAS_OTHER_RESULTS == 1, reason="reports/ has other results than the last commit")
def test_it_is_what_the_results_give(document: str) -> None:
    assert document == checklist(ROOT / "reports"), "write it again with: python -m tools.checklist"


def test_every_link_leads_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", document)
    assert links
    assert [link for link in links if not (FILE.parent / link).exists()] == []


def test_it_has_every_setting_that_differs_from_the_released_code(document: str) -> None:
    recipes = load_preset("laptop").model_dump(mode="json")["recipes"]
    for name, reasons in read_yaml(REASONS).items():
        ours, released = recipes[name]["training"], recipes[reasons["against"]]["training"]
        differing = {key for key in ours if ours[key] != released[key]}
        listed = [set(row["settings"]) for row in deviations(recipes, name, reasons)]
        assert differing <= set.union(*listed)
        assert "holdout" in differing
        table = document[document.index(f"| `{name}` |") :]
        assert f"| holdout | test | {ours['holdout']:g} |" in table


def test_a_deviation_without_a_reason_is_an_error() -> None:
    recipes: dict[str, Any] = {
        "ours": {"model": {"slope": 0.1}, "margin": 0.5},
        "theirs": {"model": {"slope": 0.2}, "margin": 0.5},
    }
    reasons: dict[str, Any] = {"against": "theirs", "reasons": [{"settings": ["margin"], "reason": "It is better."}]}
    with pytest.raises(
        UserError, match=r"^ours differs from theirs in model.slope, without a reason; add one to tools/"
    ):
        deviations(recipes, "ours", reasons)
    reasons["reasons"] = [{"settings": ["margin", "model.slope"], "reason": "It is better."}]
    row = {"settings": ["slope"], "ours": ["0.1"], "released": ["0.2"], "reason": "It is better."}
    assert deviations(recipes, "ours", reasons) == [row]


def test_a_sweep_has_the_bounds_of_what_differs() -> None:
    changes: list[dict[str, Any]] = [
        {"rate": rate, "start": start, "epochs": 10} for rate in (0.1, 0.03, 0.2) for start in ("a", "b")
    ]
    changes[0] |= {"model": {"planes": 24}}
    rows = [{"dataset": "mnist", "seed": 0, "changes": json.dumps(change)} for change in changes]
    assert sweep("rates", pd.DataFrame(rows)) == {
        "name": "rates", "trainings": 6, "datasets": ["mnist"], "seeds": [0],
        "tried": ["rate: 0.03 to 0.2", "start: a, b", "model.planes: 24, the recipe's"],
    }  # fmt: skip


def test_noise_is_the_largest_distance_from_the_mean(tmp_path: Path) -> None:
    assert noise(tmp_path / "noise.csv") == []
    rows = [{"dataset": "mnist", "recipe": "lunet", "seed": 0, "bits_per_dim": bits} for bits in (1.5, 1.5, 1.8)]
    pd.DataFrame(rows).to_csv(tmp_path / "noise.csv", index=False)
    (row,) = noise(tmp_path / "noise.csv")
    assert row["mean"] == pytest.approx(1.6)
    assert row["furthest"] == pytest.approx(0.2)
    assert row["seeds"] == 3
