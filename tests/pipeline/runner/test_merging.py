"""Merging two runs: which cells stay, which parameters go together, and what a published run is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from fake_results import Project, parameters
from fake_stage import change

from pipeline.core.cell import Key, cells_of
from pipeline.core.console import UserError
from pipeline.core.files import write_json
from pipeline.core.params import load_params
from pipeline.results.kept import Manifest
from pipeline.results.reading import RECORDS, CellStatus, Stage, read_record, record_path
from pipeline.runner.archive import check_results, epochs_of
from pipeline.runner.merging import Published, merge, worth

LATER = "2030-01-01T00:00:00+00:00"


def a_run(folder: Path, keep: dict[str, int | None], created: str = "2026-01-02", **changes: Any) -> Published:
    """A run with the cells whose names begin with ``keep``, each with all classes (None) or with so many."""
    folder.mkdir()
    project = Project(folder, parameters(**{"recipes__realnvp__classes": "each", **changes}))
    params = load_params(project.params)
    cells = []
    stages: tuple[Stage, ...] = get_args(Stage)
    pairs = [(stage, key) for stage in stages for key in cells_of(params)[stage]]
    for stage, key in pairs:
        name, path = f"{stage} {key}", record_path(project.runs, stage, key)
        classes = [number for start, number in keep.items() if name.startswith(start)]
        if not classes:
            path.unlink()
            cells.append(CellStatus(stage=stage, **key._asdict(), status="missing", message="not begun"))
            continue
        if classes[0] is not None:
            change(path, "models" if stage == "train" else "per_class", classes[0])
        record = read_record(RECORDS[stage], project.runs, params, key)
        state: dict[str, Any] = {"status": record.status, "message": record.message, "epochs": epochs_of(record)}
        cells.append(CellStatus(stage=stage, **key._asdict(), **state))
    about: dict[str, Any] = {"created": created, "preset": "laptop", "commit": None, "dirty": None, "data": {}}
    manifest = Manifest(**about, cells=cells, code={}, files={})
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    return Published(folder, manifest, params)


PAIR: dict[str, Any] = {"grid__datasets": ["mnist"], "grid__recipes": ["lunet", "realnvp"]}


def kept(manifest: Manifest) -> dict[str, tuple[str, str | None]]:
    cells = [cell for cell in manifest.cells if cell.has_record]
    return {f"{cell.stage} {cell.key}": (cell.message or cell.status, cell.run) for cell in cells}


@pytest.mark.parametrize(
    ("ours", "theirs", "message", "is_newer"),
    [
        (1, 2, "2 of 3 classes trained", True),
        (2, 1, "2 of 3 classes trained", False),
        (2, 2, "2 of 3 classes trained", False),
        (2, None, "complete", True),
        (None, 2, "complete", False),
        (None, None, "complete", False),
    ],
)
def test_of_two_states_of_a_cell_the_better_one_stays(
    tmp_path: Path, ours: int | None, theirs: int | None, message: str, is_newer: bool
) -> None:
    realnvp = ("train mnist-realnvp", "evaluate mnist-realnvp")
    old = a_run(tmp_path / "old", {"measure mnist-lunet": None, **dict.fromkeys(realnvp, ours)}, **PAIR)
    new = a_run(tmp_path / "new", {"measure mnist-realnvp": None, **dict.fromkeys(realnvp, theirs)}, LATER, **PAIR)
    manifest = merge(old, new, replace=False)
    run = LATER if is_newer else "2026-01-02"
    cells = {f"{name}-0": (message, run) for name in realnvp}
    measured = {"measure mnist-lunet": ("complete", "2026-01-02"), "measure mnist-realnvp": ("complete", LATER)}
    assert kept(manifest) == cells | measured
    check_results(new.folder, manifest)
    assert [origin.created for origin in manifest.runs] == ["2026-01-02", LATER]


def test_the_grid_of_both_runs_is_their_union_and_a_recipe_is_that_of_its_cells(tmp_path: Path) -> None:
    old = a_run(tmp_path / "old", {"measure mnist-lunet": None}, **PAIR, recipes__realnvp__training__epochs=7.0)
    grid = {"grid__datasets": ["fashion_mnist"], "grid__recipes": ["realnvp", "gaussian"]}
    grid["measure__datasets"] = ["fashion_mnist"]
    new = a_run(tmp_path / "new", {"measure fashion_mnist-realnvp": None}, LATER, **grid)
    manifest = merge(old, new, replace=False)
    params = load_params(new.folder / "params.yaml")
    assert params.grid.datasets == ["mnist", "fashion_mnist"]
    assert params.grid.recipes == ["lunet", "realnvp", "gaussian"]
    assert params.recipes["realnvp"] == new.params.recipes["realnvp"] != old.params.recipes["realnvp"]
    assert len(manifest.cells) == 2 * 3 * 3
    assert set(kept(manifest)) == {"measure mnist-lunet", "measure fashion_mnist-realnvp"}


def test_cells_of_another_recipe_are_refused(tmp_path: Path) -> None:
    old = a_run(tmp_path / "old", {"measure mnist-lunet": None}, **PAIR)
    new = a_run(tmp_path / "new", {"measure mnist": None}, **PAIR, recipes__lunet__training__epochs=7.0)
    with pytest.raises(UserError, match=r"made with other parameters \(recipes\.lunet\)"):
        merge(old, new, replace=True)


def test_a_published_run_says_what_it_has_and_is_refused_if_it_was_changed(tmp_path: Path) -> None:
    run = a_run(
        tmp_path / "run", {"measure mnist-lunet": None, "train mnist": None, "evaluate mnist-lunet": None}, **PAIR
    )
    assert run.has("measure", Key("mnist", "lunet"))
    assert not run.has("measure", Key("mnist", "realnvp"))
    assert run.has("train", Key("mnist", "lunet", 0))
    # It is not evaluated.
    assert not run.has("train", Key("mnist", "realnvp", 0))
    assert not run.has("train", Key("another", "realnvp", 0))
    assert run.has_mixture
    assert run.recipe("lunet") == run.params.recipes["lunet"].model_dump(mode="json")
    assert Published.read(tmp_path / "run").manifest == run.manifest
    changed = run.manifest.model_copy(update={"files": {"runs/mixture.json": "0"}})
    write_json(tmp_path / "run/manifest.json", changed.model_dump(mode="json"))
    with pytest.raises(UserError, match=r"mixture\.json is not what was published"):
        Published.read(tmp_path / "run")


def test_worth_orders_the_states_of_a_cell() -> None:
    key: dict[str, Any] = {"dataset": "mnist", "recipe": "realnvp", "seed": 0, "message": None}

    def states(train: str, evaluate: str, classes: int = 0) -> list[CellStatus]:
        epochs = dict.fromkeys(map(str, range(classes)), 1.0)
        return [
            CellStatus.model_validate({**key, "stage": "train", "status": train, "epochs": epochs}),
            CellStatus.model_validate({**key, "stage": "evaluate", "status": evaluate}),
        ]

    order = [
        [],
        states("partial", "missing", 6),
        states("partial", "partial", 5),
        states("partial", "partial", 6),
        states("complete", "complete", 10),
    ]
    assert sorted(order, key=worth) == order
    assert worth([]) == worth(states("missing", "failed"))
    assert worth(states("diverged", "diverged", 9)) == worth(order[-1])
