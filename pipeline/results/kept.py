"""The published runs in `reports/published/`, each with its records, so that today's rules can judge it again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from pipeline.core.cell import cells_of
from pipeline.core.console import UserError
from pipeline.core.dataset import Dataset
from pipeline.core.files import sha256
from pipeline.core.params import Section, load_params, mistakes
from pipeline.core.record import Record
from pipeline.results.metrics import subjects_of
from pipeline.results.reading import CellStatus, Results, read_cells
from pipeline.results.subjects import Subject
from pipeline.results.tables import curves_table

MANIFEST, PARAMS = "manifest.json", "params.yaml"


class Description(Record):
    """What `dataset.json` says of a data set, as far as a run without its images needs it."""

    title: str
    class_names: list[str]
    shape: tuple[int, int]
    subset: bool
    custom: bool = False
    sha256: dict[str, str]

    def without_images(self, name: str) -> Dataset:
        """The data set with no images, which still have their height and width."""
        images, labels = np.empty((0, *self.shape), np.uint8), np.empty(0, np.uint8)
        return Dataset(name, self.title, tuple(self.class_names), images, labels, images, labels, self.model_dump())


class Origin(Section):
    """One of the runs that the cells of a published run are of; ``code`` is a digest of all files of its code."""

    created: str
    commit: str | None
    dirty: bool | None
    code: str


class Manifest(Section):
    """`manifest.json`: a description of the run and its data sets, and the SHA-256 of every other file.

    ``code`` contains the SHA-256 of every file of the code that was run last; ``commit`` is null without git. ``runs``
    describes each run that the cells of a published run are of, and a cell's ``run`` is the time at which it was
    created.
    """

    format: Literal[3] = 3
    created: str
    preset: str
    commit: str | None
    dirty: bool | None
    cells: list[CellStatus]
    data: dict[str, Description]
    code: dict[str, str]
    files: dict[str, str]
    runs: list[Origin] = Field(default_factory=list)


@dataclass(frozen=True)
class Kept:
    """A run with the figures that rules judge, by data set and recipe; this run has no manifest."""

    name: str
    results: Results
    subjects: dict[str, dict[str, Subject]]
    manifest: Manifest | None = None


def read_kept(folder: Path) -> tuple[list[Kept], list[str]]:
    """All published runs by name, and a warning for each run that cannot be read.

    A folder is a run if it has a manifest, parameters or records; other folders are ignored.
    """
    runs, warnings = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not any((path / name).exists() for name in (MANIFEST, PARAMS, "runs")):
            continue
        try:
            runs.append(read_run(path))
        except UserError as error:
            reason = str(error).replace(f"{path}/", "").replace(f"{path} ", "it ")
            warnings.append(
                f"The published run {path.name} cannot be read: {reason}. Restore it with "
                f"git, or publish it again with: python -m pipeline.publish ARCHIVE {path.name} --replace"
            )
    return runs, warnings


def read_run(folder: Path, manifest: Manifest | None = None) -> Kept:
    """A published run; a ``manifest`` that is given needs no file.

    Raises:
        UserError: If a file is missing, damaged or of other cells or parameters than the manifest says.
    """
    manifest = manifest or read_manifest(folder)
    if undescribed := {cell.dataset for cell in manifest.cells if cell.has_record} - manifest.data.keys():
        raise UserError(f"{folder / MANIFEST} does not describe the data of {', '.join(sorted(undescribed))}")
    params = load_params(folder / PARAMS)
    cells = {(stage, key) for stage, keys in cells_of(params).items() for key in keys}
    if {(cell.stage, cell.key) for cell in manifest.cells} != cells:
        raise UserError(f"{folder / MANIFEST} describes other cells than {PARAMS} has")
    datasets = {name: description.without_images(name) for name, description in manifest.data.items()}
    results = read_cells(params, datasets, folder / "runs", unfinished_of(manifest.cells))
    return Kept(folder.name, results, subjects_of(results, curves_table(results.cells)), manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a published run, whose files it agrees with; raises a `UserError` otherwise."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is no published run; it has no {MANIFEST}")
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        raise UserError(f"{folder / MANIFEST}: {mistakes(error, Manifest.model_fields)[0]}") from None
    for name, checksum in manifest.files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
        if sha256(folder / name) != checksum:
            raise UserError(f"{folder / name} is not what was published: its SHA-256 is another")
    return manifest


def unfinished_of(cells: Iterable[CellStatus]) -> Sequence[CellStatus]:
    """The cells without results, but for evaluations whose training has none either."""
    cells = [cell for cell in cells if not cell.has_record]
    untrained = {cell.key for cell in cells if cell.stage == "train"}
    return [cell for cell in cells if cell.stage != "evaluate" or cell.key not in untrained]
