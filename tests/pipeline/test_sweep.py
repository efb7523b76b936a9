"""Sweeps: their variants, errors and tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from import_graph import ROOT

from pipeline import sweep
from pipeline.core.console import UserError
from pipeline.core.params import read_yaml
from pipeline.presets.merged import load_preset, preset_text

SWEEPS: dict[str, Any] = read_yaml(sweep.SWEEPS)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_variant_is_a_valid_recipe(name: str) -> None:
    params = load_preset("laptop")
    for recipe, changes in sweep.changes_of(SWEEPS[name]).values():
        training = sweep.changed(params, recipe, changes).recipe(recipe).training
        assert training is not None
        assert training.holdout != "test"


def test_a_cumulative_sweep_includes_earlier_changes() -> None:
    variants = {"first": {"a": 1}, "second": {"b": 2, "recipe": "other"}, "third": {"a": 3}}
    variant_changes = sweep.changes_of({"recipe": "one", "cumulative": True, "changes": {"z": 0}, "variants": variants})
    assert variant_changes == {
        "first": ("one", {"z": 0, "a": 1}),
        "second": ("other", {"z": 0, "a": 1, "b": 2}),
        "third": ("other", {"z": 0, "a": 3, "b": 2}),
    }
    apart = sweep.changes_of({"recipe": "one", "variants": variants})
    assert apart["third"] == ("one", {"a": 3})


@pytest.mark.parametrize(
    ("change", "unknown"), [("training.learning_rat", r"training\.learning_rat"), ("trainin.learning_rate", "trainin")]
)
def test_an_invalid_change_is_named(change: str, unknown: str) -> None:
    params = load_preset("laptop")
    with pytest.raises(UserError, match=rf"recipes\.lunet\.{unknown}: unknown key"):
        sweep.changed(params, "lunet", {change: 1})


def test_a_variant_is_trained_once_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"model.start": "standardise", "training.epochs": 0.1, "training.holdout": 0.1}
    sweeps = tmp_path / "sweeps.yaml"
    sweeps.write_text(json.dumps({"own": {"recipe": "lunet", "changes": changes, "variants": {"short": None}}}))
    monkeypatch.setattr(sweep, "SWEEPS", sweeps)
    table = tmp_path / "own.csv"
    command = ["sweep", "own", "--dataset", "mnist", "--data", str(small(tmp_path, monkeypatch)), "--out", str(table)]
    monkeypatch.setattr(sys, "argv", command)
    sweep.main()
    first = table.read_bytes()
    (row,) = sweep.read_table(table).to_dict("records")
    assert (row["variant"], row["status"], json.loads(row["changes"])) == ("short", "complete", changes)
    assert 0 < float(row["holdout_bits_per_dim"]) < 20
    capsys.readouterr()
    sweep.main()
    assert "is in" in capsys.readouterr().out
    assert table.read_bytes() == first


@pytest.mark.parametrize(
    "published", sorted((ROOT / "reports/published/sweeps").glob("*.csv")), ids=lambda path: path.stem
)
def test_a_published_table_stays_byte_for_byte_when_a_row_is_added(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(published.read_bytes())
    outcome = {
        "status": "diverged",
        "holdout_bits_per_dim": None,
        "best_epoch": 0.5,
        "seconds": 0.1,
        "steps": 12,
        "dirty": False,
        "gpu": 'A "GPU"',
    }
    monkeypatch.setattr(sweep, "train", lambda *_: outcome)
    monkeypatch.setattr(sweep, "load_dataset", lambda *_: SimpleNamespace(train_images=np.zeros((1, 2, 2))))
    command = ["sweep", "lunet", "--dataset", "mnist", "--seed", "99", "--variant", "rate 1e-3", "--out", str(table)]
    monkeypatch.setattr(sys, "argv", command)
    sweep.main()
    before, after = published.read_bytes(), table.read_bytes()
    assert after.startswith(before)
    recipe, changes = sweep.changes_of(SWEEPS["lunet"])["rate 1e-3"]
    quoted = json.dumps(changes).replace('"', '""')
    key = f'lunet,rate 1e-3,mnist,99,{recipe},"{quoted}"'
    assert after[len(before) :].decode() == f'{key},diverged,,0.5,,,12,0.1,,,,"A ""GPU""",,,,False\n'
    sweep.main()
    assert table.read_bytes() == after


def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The subset of MNIST as the data stage writes it."""
    from pipeline import data

    (folder / "params.yaml").write_text(preset_text("smoke"))
    smoke = str(folder / "params.yaml")
    monkeypatch.setattr(sys, "argv", ["data", "--dataset", "mnist", "--out", str(folder / "mnist"), "--params", smoke])
    data.main()
    return folder / "mnist"
