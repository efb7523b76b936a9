"""The presets: their changes to the laptop preset, and the single line that DVC changes in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.params import read_yaml
from pipeline.presets.merged import BASE, FOLDER, PRESETS, preset_text, preset_values

CHANGED = [*PRESETS][1:]
every_preset = pytest.mark.parametrize("preset", PRESETS)


def test_the_presets_are_the_files_and_the_whole_one_is_the_first() -> None:
    assert next(iter(PRESETS)) == BASE
    assert sorted(PRESETS) == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert {"laptop", "overnight", "paper", "smoke"} <= set(PRESETS)


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of everything that is not a section."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def changes(preset: str, folder: Path, override: str) -> list[str]:
    """The lines that DVC removes and adds when it sets one parameter."""
    from dvc.utils.hydra import apply_overrides  # here, so that tests can be collected without DVC

    path = folder / "params.yaml"
    path.write_text(preset_text(preset), encoding="utf-8")
    apply_overrides(str(path), [override])
    lines = unified_diff(
        preset_text(preset).splitlines(), path.read_text(encoding="utf-8").splitlines(), n=0, lineterm=""
    )
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


@every_preset
def test_dvc_writes_a_preset_as_it_is(preset: str, tmp_path: Path) -> None:
    assert changes(preset, tmp_path, "measure.warmup=" + str(preset_values(preset)["measure"]["warmup"])) == []


@every_preset
@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("recipes.lunet.training.epochs=7", "+      epochs: 7"),
        ("recipes.lunet.training.elementwise_rate=0.5", "+      elementwise_rate: 0.5"),
        ("recipes.gaussian.model.ridge=0.7", "+      ridge: 0.7"),
        ("recipes.lunet_learned.model.start=identity", "+      start: identity"),
        ("recipes.lunet.training.clip_norm=null", "+      clip_norm:"),
        ("data.mnist.folder=own", "+    folder: own"),
        ("device=null", "+device:"),
        ("evaluate.draws=99", "+  draws: 99"),
        ("mixture.random_seed=99", "+  random_seed: 99"),
        ("report.title=Ours", "+  title: Ours"),
    ],
)
def test_dvc_changes_one_line_and_no_comment(preset: str, key: str, line: str, tmp_path: Path) -> None:
    removed, added = changes(preset, tmp_path, key)
    assert removed.startswith("-")
    assert removed.lstrip("- ").partition(":")[0] == added.lstrip("+ ").partition(":")[0]
    assert added == line


@every_preset
def test_dvc_adds_one_line_for_one_more_seed(preset: str, tmp_path: Path) -> None:
    assert changes(preset, tmp_path, "grid.seeds=[0,1]") == ["+  - 1"]


@pytest.mark.parametrize("preset", CHANGED)
def test_a_preset_keeps_only_what_it_changes(preset: str) -> None:
    base = dict(leaves(preset_values(BASE)))
    changed = dict(leaves(read_yaml(FOLDER / f"{preset}.yaml")))
    recipes = preset_values(BASE)["recipes"]  # a preset may have more of them
    assert {key for key in changed if not key.startswith("recipes.") or key.split(".")[1] in recipes} <= set(base)
    assert [key for key, value in changed.items() if key in base and base[key] == value] == []
    assert dict(leaves(preset_values(preset))) == base | changed


@pytest.mark.parametrize("preset", CHANGED)
def test_the_comments_are_those_of_the_whole_preset(preset: str) -> None:
    def comments(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.lstrip().startswith("#")]

    first, *rest = comments(preset_text(preset))
    assert rest == comments(preset_text(BASE))[1:]
    assert first == (FOLDER / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()[0]
