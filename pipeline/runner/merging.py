"""Merges the archive of a run into a published run: cell by cell, what is complete in place of what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.core.cell import Key, cells_of
from pipeline.core.console import UserError
from pipeline.core.files import sha256, write_text
from pipeline.core.params import Params, load_params, validate
from pipeline.page.view import as_yaml
from pipeline.results.kept import PARAMS, Manifest, Origin, read_manifest
from pipeline.results.provenance import plain_values
from pipeline.results.reading import CellStatus, Stage, record_path
from pipeline.runner.steps import files_under

MIXTURE = Path("runs/mixture.json")
# Parameters that all cells of a published run must share, beside those of their recipes.
SHARED = ("preset", "deterministic", "evaluate", "measure", "mixture")
UNSHARED = {"measure": {"datasets"}}  # the grids may differ, and so may the data sets to measure
# The cells that go together: an evaluation is of its training.
UNITS: dict[Stage, tuple[Stage, ...]] = {"measure": ("measure",), "train": ("train", "evaluate")}


@dataclass(frozen=True)
class Published:
    """A run in a folder, published or unpacked from an archive."""

    folder: Path
    manifest: Manifest
    params: Params

    @classmethod
    def read(cls, folder: Path) -> Published:
        """Read a run; raises a `UserError` if it is damaged or was made by an incompatible version."""
        return cls(folder, read_manifest(folder), load_params(folder / PARAMS))

    @cached_property
    def cells(self) -> dict[tuple[str, Key], CellStatus]:
        """The status of each cell of the grid."""
        return {(cell.stage, cell.key): cell for cell in self.manifest.cells}

    @property
    def recipes(self) -> set[str]:
        """The recipes with results."""
        return {cell.recipe for cell in self.manifest.cells if cell.has_record}

    @property
    def has_mixture(self) -> bool:
        """Whether the experiment in two dimensions is there."""
        return (self.folder / MIXTURE).is_file()

    def unit(self, stage: Stage, key: Key) -> list[CellStatus]:
        """The cells that go together with one; empty if the grid has none of them."""
        return [self.cells[part, key] for part in UNITS[stage] if (part, key) in self.cells]

    def has(self, stage: str, key: Key) -> bool:
        """Whether a cell, with those that go together with it, has ended."""
        unit = self.unit("measure" if stage == "measure" else "train", key)
        return bool(unit) and all(cell.finished for cell in unit)

    def recipe(self, name: str) -> dict[str, Any]:
        """The settings of a recipe as plain values."""
        return self.params.recipe(name).model_dump(mode="json")

    def origins(self) -> list[Origin]:
        """The runs that the cells are of."""
        code = sha256(json.dumps(self.manifest.code, sort_keys=True).encode())
        own = Origin(**self.manifest.model_dump(include={"created", "commit", "dirty"}), code=code)
        return self.manifest.runs or [own]

    def labelled(self, cells: Iterable[CellStatus]) -> list[CellStatus]:
        """Cells of this run, those with results with the run that they are of."""
        return [
            cell.model_copy(update={"run": cell.run or self.manifest.created}) if cell.has_record else cell
            for cell in cells
        ]

    def check_compatible(self, params: Params, recipes: Sequence[str] | None = None) -> None:
        """Raise a `UserError` if cells of other parameters cannot stand beside those of this run."""
        names = [f"recipes.{name}" for name in recipes or params.recipes if name in self.recipes]
        theirs, ours = (
            {**{name: values[name] for name in SHARED}, **{f"recipes.{n}": r for n, r in values["recipes"].items()}}
            for values in (params.model_dump(exclude=UNSHARED), self.params.model_dump(exclude=UNSHARED))
        )
        if differing := [name for name in (*SHARED, *names) if theirs.get(name) != ours.get(name)]:
            raise UserError(
                f"{self.folder} was made with other parameters ({', '.join(differing)}), and no cells can be "
                "added to it; choose another name"
            )


def merge(old: Published, new: Published, *, replace: bool) -> Manifest:
    """Add the cells of a published run to the folder of a newly unpacked one, and return their common manifest.

    Of a cell that both have, the one stays that is complete, or has more classes. If both are complete and differ, it
    is that of the new run if ``replace`` says so.

    Raises:
        UserError: If the runs do not go together, or both have a complete cell and ``replace`` is false.
    """
    old.check_compatible(new.params, sorted(new.recipes))
    data = old.manifest.data, new.manifest.data
    shared_data = data[0].keys() & data[1].keys()
    if changed := [name for name in sorted(shared_data) if data[0][name].sha256 != data[1][name].sha256]:
        raise UserError(f"{old.folder} was made from other data of {', '.join(changed)}")
    params = merged_params(old, new)
    merged, conflicts = list[CellStatus](), list[str]()
    cells_by_stage = cells_of(params)
    units = [(stage, key) for stage in UNITS for key in cells_by_stage[stage]]
    for stage, key in units:
        ours, theirs = old.unit(stage, key), new.unit(stage, key)
        is_newer = worth(theirs) > worth(ours)
        if old.has(stage, key) and new.has(stage, key) and not same_files(old, new, stage, key):
            is_newer = replace
            conflicts += [] if replace else [f"{stage} {key}"]
        source, cells = (new, theirs) if is_newer else (old, ours)
        if not is_newer:
            take(old, new, stage, key)
        merged += source.labelled(cells) or [
            CellStatus(stage=part, **key._asdict(), status="missing", message="not begun") for part in UNITS[stage]
        ]
    if conflicts:
        raise UserError(
            f"both {old.folder} and the archive have {', '.join(conflicts)}, with other results; --replace takes those "
            "of the archive"
        )
    if not new.has_mixture and old.has_mixture:
        copy(old.folder / MIXTURE, new.folder / MIXTURE)
    used = {cell.run for cell in merged if cell.has_record}
    origins = {origin.created: origin for origin in (*new.origins(), *old.origins())}
    runs = sorted((origins[created] for created in used if created), key=lambda origin: origin.created)
    states = {(origin.commit, origin.dirty) for origin in runs}
    commit, dirty = states.pop() if len(states) == 1 else (None, None)
    write_text(new.folder / PARAMS, as_yaml(plain_values(params), sort=True))
    update = {"cells": merged, "runs": runs, "commit": commit, "dirty": dirty}
    return new.manifest.model_copy(update={**update, "data": data[0] | data[1]})


def merged_params(old: Published, new: Published) -> Params:
    """The parameters of both runs' cells: the settings of a recipe are those of a run that has results of it."""
    values, added = (run.params.model_dump(mode="json", exclude_unset=True) for run in (old, new))
    grids = [values["grid"], added["grid"]]
    values["grid"] = {name: list(dict.fromkeys([*grids[0][name], *grids[1][name]])) for name in grids[0]}
    measured = [key.dataset for run in (old, new) for key in cells_of(run.params)["measure"]]
    values["measure"]["datasets"] = list(dict.fromkeys(measured))
    values["data"] = added["data"] | values["data"]
    values["recipes"] = added["recipes"] | {
        name: recipe
        for name, recipe in values["recipes"].items()
        if name in old.recipes or name not in new.params.recipes
    }
    return validate(values, "the parameters of both runs")


def worth(cells: Sequence[CellStatus]) -> tuple[bool, bool, int, int]:
    """Orders the states of a cell: all of it has ended; all of it has results; its trained classes; its records."""
    records = [cell for cell in cells if cell.has_record]
    is_whole = bool(cells) and len(records) == len(cells)
    classes = sum(len(cell.epochs or ()) for cell in records)
    has_ended = is_whole and all(cell.finished for cell in cells)
    return has_ended, is_whole, 0 if has_ended else classes, 0 if has_ended else len(records)


def records(stage: str, key: Key) -> list[Path]:
    """The records of a cell, relative to a run's folder."""
    runs = Path("runs")
    return [record_path(runs, stage, key), *([runs / "train" / str(key) / "history.csv"] if stage == "train" else [])]


def same_files(old: Published, new: Published, stage: Stage, key: Key) -> bool:
    """Whether two runs have the same records of a cell and of those that go together with it, byte for byte."""
    return all(
        (old.folder / file).read_bytes() == (new.folder / file).read_bytes()
        for part in UNITS[stage]
        for file in records(part, key)
    )


def take(old: Published, new: Published, stage: Stage, key: Key) -> None:
    """Put the files of a cell of the old run in the place of those of the new one."""
    for path in (*(file for part in UNITS[stage] for file in records(part, key)), Path("runs/samples", str(key))):
        target = new.folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        for file in files_under(old.folder / path):
            if file.is_file():
                copy(file, new.folder / file.relative_to(old.folder))


def copy(source: Path, target: Path) -> None:
    """Copy a file and make the folder that it goes to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
