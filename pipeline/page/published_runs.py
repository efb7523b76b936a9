"""The published runs in `reports/published/`, each read from its files, for comparison with this run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pandas as pd
from pydantic import Field, FiniteFloat, ValidationError

from pipeline.core.console import UserError
from pipeline.core.files import read_json, sha256
from pipeline.core.record import Record
from pipeline.results.claims import Verdict
from pipeline.results.statistics import mean_interval, round_significant
from pipeline.results.tables import RESULTS, read_table

MANIFEST = "manifest.json"
FILES = ("claims.json", "provenance.json", "results.csv", "timings.json")
THIS_RUN = "This run"
BITS = "bits_per_dim"
T = TypeVar("T")


class Figure(Record):
    """A time or an amount of memory in `timings.json`."""

    median: FiniteFloat
    ci_low: FiniteFloat | None
    ci_high: FiniteFloat | None
    n: int
    batch: int | None = None


class Look(Record):
    """A recipe's name for readers and its colour."""

    label: str
    colour: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]


class Titled(Record):
    """A data set's name for readers."""

    title: str
    subset: bool


class State(Record):
    """The status of a cell."""

    stage: str
    dataset: str
    recipe: str
    seed: int | None
    status: str
    message: str | None


class Machine(Record):
    """The machine that cells ran on, and the commit of the code."""

    processor: str
    device: str
    gpu: str | None
    commit: str | None
    dirty: bool | None


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
    cells: list[State]
    environments: list[Group]

    @property
    def machines(self) -> list[Machine]:
        """The machines of the grid's cells; the two-dimensional mixture experiment does not count."""
        return [group.environment for group in self.environments if set(group.cells) != {"mixture"}]


class Judged(Record):
    """A claim with its verdict."""

    id: str
    title: str
    verdict: Verdict
    label: str


class Claims(Record):
    """The part of `claims.json` that is read."""

    claims: list[Judged]


class Timings(Record):
    """`timings.json`: figures by data set, recipe and quantity."""

    found: dict[str, dict[str, dict[str, Figure]]]


class Published(Record):
    """The part of `manifest.json` that is read; its commit, if given, replaces those of the cells."""

    commit: str | None
    dirty: bool | None
    files: dict[str, str]


@dataclass(frozen=True)
class Run:
    """One column of the tables: a run's name, its provenance, and its figures by data set, recipe and quantity."""

    name: str
    provenance: Provenance
    verdicts: Mapping[str, Judged]
    figures: Mapping[tuple[str, str, str], Mapping[str, Any]]
    commits: Sequence[str]

    @property
    def devices(self) -> list[str]:
        """The devices that the cells of the grid ran on: the GPU, or the processor."""
        machines = self.provenance.machines
        return sorted({machine.gpu or f"{machine.processor}, {machine.device.upper()}" for machine in machines})

    @property
    def subsets(self) -> list[str]:
        """The titles of the data sets that the run uses only a subset of."""
        return [dataset.title for dataset in self.provenance.datasets.values() if dataset.subset]

    @property
    def unfinished(self) -> list[State]:
        """The cells that have no figures."""
        return [cell for cell in self.provenance.cells if cell.status != "complete"]

    def value(self, dataset: str, recipe: str, quantity: str) -> dict[str, Any]:
        """A figure, and the status of each unfinished cell that it depends on: a measurement, or all others."""
        return {
            "found": self.figures.get((dataset, recipe, quantity)),
            "trouble": [
                (f"seed {cell.seed}: " if cell.seed is not None else "") + cell.status.replace("_", " ")
                for cell in self.unfinished
                if (cell.dataset, cell.recipe, cell.stage == "measure") == (dataset, recipe, quantity != BITS)
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
            runs.append(_read_checked(path))
        except UserError as error:
            warnings.append(
                f"The published run {path.name} cannot be shown: {error}. Publish it again with: "
                f"python -m pipeline.publish ARCHIVE {path.name} --replace"
            )
    return runs, warnings


def read_this(reports: Path) -> Run:
    """This run, read from the same files as the published runs.

    Raises:
        UserError: If a file is missing or damaged.
    """
    try:
        return _read(reports, THIS_RUN)
    except ValidationError as error:
        raise UserError(
            f"{reports} is damaged ({_first_mistake(error)}): write it again with python -m pipeline.collect"
        ) from None


def _read_checked(folder: Path) -> Run:
    """Read a published run and check its files against the manifest.

    Raises:
        UserError: If a file is missing, changed or invalid; the message is a clause.
    """
    try:
        manifest = Published.model_validate(_content(folder / MANIFEST))
        for name in FILES:
            if not (folder / name).is_file():
                raise UserError(f"it has no {name}")
            if sha256(folder / name) != manifest.files.get(name):
                raise UserError(f"{name} is not what was published, its SHA-256 is another")
        return _read(folder, folder.name, manifest)
    except ValidationError as error:
        raise UserError(_first_mistake(error)) from None
    except ValueError as error:
        raise UserError(f"its results.csv: {error}") from None
    except OSError as error:
        raise UserError(f"{Path(str(error.filename or folder)).name}: {error.strerror}") from None


def _read(folder: Path, name: str, manifest: Published | None = None) -> Run:
    provenance = Provenance.model_validate(_content(folder / "provenance.json"))
    claims = Claims.model_validate(_content(folder / "claims.json")).claims
    bits = _bits(_content(folder / "results.csv"))
    timings = {
        (dataset, recipe, quantity): figure.model_dump()
        for dataset, recipes in Timings.model_validate({"found": _content(folder / "timings.json")}).found.items()
        for recipe, figures in recipes.items()
        for quantity, figure in figures.items()
    }
    sources = [manifest] if manifest and manifest.commit is not None else provenance.machines
    commits = sorted({_commit(source) for source in sources})
    return Run(name, provenance, {claim.id: claim for claim in claims}, {**timings, **bits}, commits)


def _content(path: Path) -> Any:
    """The content of a JSON file or of `results.csv`; its error is a clause, without the command of this run's file."""
    try:
        return read_json(path) if path.suffix == ".json" else read_table(path, RESULTS)
    except UserError as error:
        damage = "cannot be read as JSON" if path.suffix == ".json" else "is damaged"
        raise UserError(f"its {path.name} {damage if path.exists() else 'is missing'}") from error


def _bits(table: pd.DataFrame) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Test bits/dim by data set and recipe: the mean over complete seeds, its interval and the raw values."""
    complete = table[(table["class"] == "all") & table["bits_per_dim_mean"].notna()]
    bits = {}
    for (dataset, recipe), rows in complete.groupby(["dataset", "recipe"]):
        values = rows["bits_per_dim_mean"].tolist()
        interval = mean_interval(values)
        ends = {"mean": interval.value, "ci_low": interval.low, "ci_high": interval.high}
        rounded = {name: None if end is None else round_significant(end) for name, end in ends.items()}
        bits[str(dataset), str(recipe), BITS] = {**rounded, "n": interval.n, "raw": seeds(rows["seed"], values)}
    return bits


def seeds(numbers: Iterable[int], values: Iterable[float]) -> dict[str, Any]:
    """The raw values behind a mean over seeds."""
    return {"what": "seed", "values": list(values), "names": [str(number) for number in numbers]}


def _commit(source: Machine | Published) -> str:
    return "unknown commit" if source.commit is None else source.commit[:12] + ("+" if source.dirty else "")


def _first_mistake(error: ValidationError) -> str:
    """The first validation error as a clause."""
    mistake = error.errors(include_url=False)[0]
    return f"its {error.title.lower()} {'.'.join(map(str, mistake['loc']))}: {mistake['msg'].lower()}"


def likelihood_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each data set and recipe of any of the runs, a column for each run."""
    return list(_rows(runs, BITS))


def timing_rows(runs: Sequence[Run], quantities: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each quantity, data set and recipe of which any of the runs has a figure, a column for each run."""
    return [
        {**row, "quantity": label}
        for quantity, label in quantities.items()
        for row in _rows(runs, quantity)
        if any(value["found"] for value in row["values"])
    ]


def verdict_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each claim that any of the runs judges, a column for each run."""
    claims = _first(run.verdicts for run in runs)
    return [{"title": claims[name].title, "values": [run.verdicts.get(name) for run in runs]} for name in claims]


def _rows(runs: Sequence[Run], quantity: str) -> Iterator[dict[str, Any]]:
    """A row of a quantity for each data set and recipe that are in the same run."""
    datasets = _first(run.provenance.datasets for run in runs)
    recipes = _first(run.provenance.recipes for run in runs)
    for dataset, recipe in product(datasets, recipes):
        if any(recipe in run.provenance.recipes and dataset in run.provenance.datasets for run in runs):
            titles = {"dataset": datasets[dataset].title, "recipe": recipe, "look": recipes[recipe]}
            yield {**titles, "values": [run.value(dataset, recipe, quantity) for run in runs]}


def _first(parts: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """The first value of each name, in order of first occurrence."""
    merged: dict[str, T] = {}
    for name, value in chain.from_iterable(part.items() for part in parts):
        merged.setdefault(name, value)
    return merged
