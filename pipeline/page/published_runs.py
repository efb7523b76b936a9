"""The published runs in `reports/published/`, each read from its files, for comparison with this run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
from pydantic import AliasPath, Field, FiniteFloat, ValidationError

from pipeline.core.console import UserError
from pipeline.core.files import read_json, sha256
from pipeline.core.params import Section, mistakes
from pipeline.core.record import Record
from pipeline.results.claims import Verdict
from pipeline.results.looks import Look
from pipeline.results.reading import CellStatus
from pipeline.results.statistics import mean_interval
from pipeline.results.tables import read_table

MANIFEST = "manifest.json"
FILES = ("claims.json", "provenance.json", "results.csv", "timings.json")
BITS = "bits_per_dim"
T = TypeVar("T")


class Origin(Section):
    """One of the runs that the cells of a published run are of; ``code`` is a digest of all files of its code."""

    created: str
    commit: str | None
    dirty: bool | None
    code: str


class Manifest(Section):
    """`manifest.json`: a description of the run, and the SHA-256 of every other file.

    ``code`` contains the SHA-256 of every file of the code that was run last, ``data`` those of the data sets;
    ``commit`` is null without git. ``runs`` describes each run that the cells of a published run are of, and a cell's
    ``run`` is the time at which it was created.
    """

    format: Literal[1, 2]
    created: str
    preset: str
    commit: str | None
    dirty: bool | None
    environments: list[dict[str, Any]]
    cells: list[CellStatus]
    code: dict[str, str]
    files: dict[str, str]
    runs: list[Origin] = Field(default_factory=list)
    data: dict[str, dict[str, str]] = Field(default_factory=dict)


class Figure(Record):
    """A time or an amount of memory in `timings.json`."""

    median: FiniteFloat
    ci_low: FiniteFloat | None
    ci_high: FiniteFloat | None
    n: int
    batch: int | None = None


class Titled(Record):
    """A data set's name for readers."""

    title: str
    subset: bool


class Machine(Record):
    """The machine that cells ran on, and the commit of the code."""

    processor: str
    device: str
    gpu: str | None
    commit: str | None
    dirty: bool | None

    @property
    def title(self) -> str:
        """The device for readers: the GPU, or the processor."""
        return self.gpu or f"{self.processor}, {self.device.upper()}"


def commit_title(source: Origin | Manifest | Machine) -> str:
    """A commit for readers, with a + if there were changes that were not committed."""
    return "unknown commit" if source.commit is None else source.commit[:12] + ("+" if source.dirty else "")


class Group(Record):
    """The cells of one machine, by stage."""

    environment: Machine
    cells: dict[str, list[str]]


class Provenance(Record):
    """The part of `provenance.json` that is read."""

    preset: str
    separate_noise: bool = False
    datasets: dict[str, Titled]
    recipes: dict[str, Look]
    cells: list[CellStatus]
    environments: list[Group]


class Judged(Record):
    """A claim with its verdict."""

    id: str
    title: str
    verdict: Verdict
    label: str


class Run(Record):
    """One column of the tables: a run's name and what its files contain, figures by data set and recipe.

    ``partial`` has the figures of the trained classes of cells that are partial.
    """

    name: str
    manifest: Manifest | None
    provenance: Provenance
    claims: Annotated[list[Judged], Field(validation_alias=AliasPath("claims", "claims"))]
    timings: dict[str, dict[str, dict[str, Figure]]]
    bits: dict[tuple[str, str], dict[str, Any]]
    partial: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def machines(self) -> list[Machine]:
        """The machines of the grid's cells; the two-dimensional mixture experiment does not count."""
        return [group.environment for group in self.provenance.environments if set(group.cells) != {"mixture"}]

    @property
    def devices(self) -> list[str]:
        """The devices that the cells of the grid ran on: the GPU, or the processor."""
        return sorted({machine.title for machine in self.machines})

    @property
    def commits(self) -> list[str]:
        """The commits of the code, each with a + if it had changes that were not committed."""
        runs: Sequence[Origin | Manifest] = (self.manifest.runs or [self.manifest]) if self.manifest else []
        sources = [run for run in runs if run.commit is not None] or self.machines
        return sorted({commit_title(source) for source in sources})

    @property
    def origins(self) -> list[dict[str, Any]]:
        """Which run, device and commit the cells with results are of: a row each, with the cells by stage."""
        manifest = self.manifest
        if manifest is None:
            return []
        runs = {run.created: run for run in manifest.runs}
        machines = {
            (stage, name): group.environment
            for group in self.provenance.environments
            for stage, names in group.cells.items()
            for name in names
        }
        rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
        for cell in manifest.cells:
            if (machine := machines.get((cell.stage, str(cell.key)))) is None:
                continue
            created = cell.run or manifest.created
            run = runs.get(created, manifest)
            row = created, machine.title, commit_title(run if run.commit is not None else machine)
            rows.setdefault(row, {}).setdefault(cell.stage, []).append(str(cell.key))
        columns = ("created", "device", "commit")
        return [{**dict(zip(columns, row, strict=True)), "cells": cells} for row, cells in sorted(rows.items())]

    @property
    def has_different_code(self) -> bool:
        """Whether its cells are of runs with different code."""
        return self.manifest is not None and len({run.code for run in self.manifest.runs}) > 1

    @property
    def unfinished(self) -> list[CellStatus]:
        """The cells that have no figures, or those of some classes alone."""
        return [cell for cell in self.provenance.cells if cell.status != "complete"]

    def value(self, dataset: str, recipe: str, quantity: str) -> dict[str, Any]:
        """A figure, and the status of each unfinished cell that it depends on: a measurement, or all others."""
        timing, measured = self.timings.get(dataset, {}).get(recipe, {}).get(quantity), quantity != BITS
        cells = [cell for cell in self.provenance.cells if (cell.recipe, cell.stage == "measure") == (recipe, measured)]
        own = [cell for cell in cells if cell.dataset == dataset]
        if measured and dataset in self.timings:  # a measurement on images of another data set may stand for it
            own = own or cells
        return {
            "found": timing and timing.model_dump() if measured else self.bits.get((dataset, recipe)),
            "trouble": [
                (f"seed {cell.seed}: " if cell.seed is not None else "") + cell.summary
                for cell in own
                if cell.status != "complete"
            ],
        }


def read_published(folder: Path) -> tuple[list[Run], list[str]]:
    """All published runs by name, and a warning for each run that cannot be read.

    A folder is a run if it contains any file of a run; other folders are ignored.
    """
    runs, warnings = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not any((path / name).exists() for name in (MANIFEST, *FILES)):
            continue
        try:
            runs.append(_read(path, path.name, _manifest(path)))
        except UserError as error:
            warnings.append(
                f"The published run {path.name} cannot be shown: {error}. Publish it again with: "
                f"python -m pipeline.publish ARCHIVE {path.name} --replace"
            )
    return runs, warnings


def _manifest(folder: Path) -> Manifest:
    """The manifest of a published run, whose files it agrees with; as with `_read`, an error is a clause."""
    try:
        manifest = Manifest.model_validate(_content(folder / MANIFEST))
        for name in FILES:
            if not (folder / name).is_file():
                raise UserError(f"it has no {name}")
            if sha256(folder / name) != manifest.files.get(name):
                raise UserError(f"{name} is not what was published, its SHA-256 is another")
    except ValidationError as error:
        raise UserError(f"its {mistakes(error, (), 'manifest')[0]}") from None
    except OSError as error:
        raise UserError(f"{Path(str(error.filename or folder)).name}: {error.strerror}") from None
    return manifest


def _read(folder: Path, name: str, manifest: Manifest | None) -> Run:
    """A run from its files.

    Raises:
        UserError: If a file is missing or invalid; the message is a clause.
    """
    contents = {Path(file).stem: _content(folder / file) for file in FILES}
    try:
        results = contents["results"]
        bits = {"bits": _bits(results), "partial": _classes_of_partial_cells(results)}
        return Run.model_validate({**contents, **bits, "name": name, "manifest": manifest})
    except ValidationError as error:
        raise UserError(f"its {mistakes(error, ())[0]}") from None
    except ValueError as error:
        raise UserError(f"its results.csv: {error}") from None


def _content(path: Path) -> Any:
    """The content of a JSON file or of `results.csv`; its error is a clause, without the command of this run's file."""
    try:
        return read_json(path) if path.suffix == ".json" else read_table(path)
    except UserError as error:
        damage = "cannot be read as JSON" if path.suffix == ".json" else "is damaged"
        raise UserError(f"its {path.name} {damage if path.exists() else 'is missing'}") from error


def _bits(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Test bits/dim by data set and recipe: the mean over complete seeds, its interval and the raw values."""
    complete = table[(table["class"] == "all") & table["bits_per_dim_mean"].notna()]
    bits = {}
    for (dataset, recipe), rows in complete.groupby(["dataset", "recipe"]):
        mean = mean_interval(rows["bits_per_dim_mean"].tolist()).rounded()
        figure = {"mean": mean.value, "ci_low": mean.low, "ci_high": mean.high, "n": mean.n}
        bits[str(dataset), str(recipe)] = {**figure, "raw": seeds(rows["seed"], rows["bits_per_dim_mean"])}
    return bits


def _classes_of_partial_cells(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The test bits/dim of each trained class of the partial cells."""
    rows = table[(table["status"] == "partial") & (table["class"] != "all")]
    same = {name: name for name in ("dataset", "recipe", "seed")}
    columns = {**same, "class": "class_name", "bits": "bits_per_dim_mean"}
    return [{name: row[column] for name, column in columns.items()} for _, row in rows.iterrows()]


def seeds(numbers: Iterable[int], values: Iterable[float]) -> dict[str, Any]:
    """The raw values behind a mean over seeds."""
    return {"what": "seed", "values": list(values), "names": [str(number) for number in numbers]}


def compare_runs(reports: Path, quantities: Mapping[str, str]) -> dict[str, Any]:
    """This run and the published runs, a column for each, and a warning for each run that cannot be read.

    The rows are of likelihoods, of verdicts, and of those ``quantities`` that any run has: times and memory, with
    their names for readers. Without published runs there are none.

    Raises:
        UserError: If a file of this run is missing or damaged.
    """
    published, warnings = read_published(reports / "published")
    if not published:
        return {"runs": [], "warnings": warnings}
    try:
        runs = [_read(reports, "This run", None), *published]
    except UserError as error:
        raise UserError(f"{reports} is damaged ({error}): write it again with python -m pipeline.collect") from None
    verdicts = [{claim.id: claim for claim in run.claims} for run in runs]
    timings = [{**row, "quantity": label} for name, label in quantities.items() for row in _rows(runs, name)]
    return {
        "runs": runs,
        "warnings": warnings,
        "likelihood": _rows(runs, BITS),
        "timings": [row for row in timings if any(value["found"] for value in row["values"])],
        "verdicts": [
            {"title": claim.title, "values": [by_id.get(name) for by_id in verdicts]}
            for name, claim in _first(verdicts).items()
        ],
    }


def _rows(runs: Sequence[Run], quantity: str) -> list[dict[str, Any]]:
    """A row of a quantity for each data set and recipe that are in the same run."""
    datasets = _first(run.provenance.datasets for run in runs)
    recipes = _first(run.provenance.recipes for run in runs)
    return [
        {
            "dataset": datasets[dataset].title,
            "recipe": recipe,
            "look": recipes[recipe],
            "values": [run.value(dataset, recipe, quantity) for run in runs],
        }
        for dataset, recipe in product(datasets, recipes)
        if any(recipe in run.provenance.recipes and dataset in run.provenance.datasets for run in runs)
    ]


def _first(parts: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """The first value of each name, in order of first occurrence."""
    merged: dict[str, T] = {}
    for part in parts:
        merged = {**merged, **part, **merged}
    return merged
