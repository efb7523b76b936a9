"""The runs that are kept in `reports/published/`, each read from its own files, to stand beside this run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field, FiniteFloat, ValidationError

from pipeline.core.console import UserError
from pipeline.core.files import read_json
from pipeline.results.claims import Verdict
from pipeline.results.records import Record
from pipeline.results.statistics import mean_interval, rounded
from pipeline.results.tables import RESULTS, read_table

MANIFEST = "manifest.json"
FILES = ("claims.json", "provenance.json", "results.csv", "timings.json")
THIS = "This run"


class Figure(Record):
    """A time or a size of memory, of `timings.json`."""

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
    """What became of a cell."""

    stage: str
    dataset: str
    recipe: str
    seed: int | None
    status: str
    message: str | None


class Machine(Record):
    """Where cells ran, and with which code."""

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
    """What is read of `provenance.json`."""

    preset: str
    datasets: dict[str, Titled]
    recipes: dict[str, Look]
    cells: list[State]
    environments: list[Group]

    @property
    def machines(self) -> list[Machine]:
        """Where the cells of the grid ran; the fit in two dimensions is none of them."""
        return [group.environment for group in self.environments if set(group.cells) != {"mixture"}]


class Judged(Record):
    """A claim with its verdict."""

    id: str
    title: str
    verdict: Verdict
    label: str


class Claims(Record):
    """What is read of `claims.json`."""

    claims: list[Judged]


class Timings(Record):
    """`timings.json`: figures by data set, recipe and quantity."""

    found: dict[str, dict[str, dict[str, Figure]]]


class Published(Record):
    """What is read of `manifest.json`, which says of which code the run is where its cells do not know it."""

    commit: str | None
    dirty: bool | None
    files: dict[str, str]


@dataclass(frozen=True)
class Run:
    """One column of the tables: a run's name, where it ran, and what it found."""

    name: str
    provenance: Provenance
    verdicts: Mapping[str, Judged]
    bits: Mapping[tuple[str, str], Mapping[str, Any]]
    timings: Mapping[str, Mapping[str, Mapping[str, Figure]]]
    commits: Sequence[str]

    @property
    def devices(self) -> list[str]:
        """The machines that the cells of the grid ran on, by what computes there."""
        machines = self.provenance.machines
        return sorted({machine.gpu or f"{machine.processor}, {machine.device.upper()}" for machine in machines})

    @property
    def subsets(self) -> list[str]:
        """The data sets of which the run has but a part."""
        return [found.title for found in self.provenance.datasets.values() if found.subset]

    @property
    def unfinished(self) -> list[State]:
        """The cells that have no figures."""
        return [cell for cell in self.provenance.cells if cell.status != "complete"]

    def trouble(self, dataset: str, recipe: str, *, measured: bool) -> list[str]:
        """What became of those cells of a data set and a recipe that have no figures, measurements or trainings."""
        return [
            (f"seed {cell.seed}: " if cell.seed is not None else "") + cell.status.replace("_", " ")
            for cell in self.unfinished
            if (cell.dataset, cell.recipe, cell.stage == "measure") == (dataset, recipe, measured)
        ]


def read_published(folder: Path) -> tuple[list[Run], list[str]]:
    """All published runs by name, and a sentence for each that cannot be read.

    A folder is a run if it has any of the files of one; other folders may stand beside it.
    """
    runs, warnings = [], []
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        if place.name.startswith(".") or not any((place / name).exists() for name in (MANIFEST, *FILES)):
            continue
        try:
            runs.append(_published(place))
        except UserError as error:
            warnings.append(
                f"The published run {place.name} cannot be shown: {error}. Publish it again with: "
                f"python -m pipeline.publish ARCHIVE {place.name} --replace"
            )
    return runs, warnings


def read_this(reports: Path) -> Run:
    """This run, from the same files as the others.

    Raises:
        UserError: If a file is missing or damaged.
    """
    try:
        return _read(reports, THIS)
    except ValidationError as error:
        raise UserError(
            f"{reports} is damaged ({_first(error)}): write it again with python -m pipeline.collect"
        ) from None


def _published(folder: Path) -> Run:
    """A run whose files are those that were published.

    Raises:
        UserError: If they are not, or not as they should be; the message fits into a sentence.
    """
    try:
        manifest = Published.model_validate(_json(folder, MANIFEST))
        for name in FILES:
            if not (folder / name).is_file():
                raise UserError(f"it has no {name}")
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != manifest.files.get(name):
                raise UserError(f"{name} is not what was published, its SHA-256 is another")
        run = _read(folder, folder.name)
    except ValidationError as error:
        raise UserError(_first(error)) from None
    except ValueError as error:
        raise UserError(f"its results.csv: {error}") from None
    except OSError as error:
        raise UserError(f"{Path(str(error.filename or folder)).name}: {error.strerror}") from None
    if manifest.commit is None:
        return run
    return Run(**{**vars(run), "commits": [_commit(manifest)]})


def _read(folder: Path, name: str) -> Run:
    provenance = Provenance.model_validate(_json(folder, "provenance.json"))
    claims = Claims.model_validate(_json(folder, "claims.json")).claims
    return Run(
        name=name,
        provenance=provenance,
        verdicts={claim.id: claim for claim in claims},
        bits=_bits(folder / "results.csv"),
        timings=Timings.model_validate({"found": _json(folder, "timings.json")}).found,
        commits=sorted({_commit(machine) for machine in provenance.machines}),
    )


def _json(folder: Path, name: str) -> Any:
    """A JSON file; the message of its error fits into a sentence, with no command that writes another run's file."""
    try:
        return read_json(folder / name)
    except UserError as error:
        word = "is missing" if not (folder / name).exists() else "cannot be read as JSON"
        raise UserError(f"its {name} {word}") from error


def _bits(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Test bits/dim by data set and recipe: the mean over complete seeds with its interval, and what it is made of."""
    try:
        table = read_table(path, RESULTS)
    except UserError:
        raise UserError(f"its {path.name} {'is damaged' if path.exists() else 'is missing'}") from None
    own = table[(table["class"] == "all") & table["bits_per_dim_mean"].notna()]
    return {(str(key[0]), str(key[1])): _estimate(rows) for key, rows in own.groupby(["dataset", "recipe"])}


def _estimate(rows: pd.DataFrame) -> dict[str, Any]:
    values = rows["bits_per_dim_mean"].tolist()
    found = mean_interval(values)
    low, high = (None if end is None else rounded(end) for end in (found.low, found.high))
    return {
        "mean": rounded(found.value),
        "ci_low": low,
        "ci_high": high,
        "n": found.n,
        "raw": seeds(rows["seed"], values),
    }


def seeds(numbers: Iterable[int], values: Iterable[float]) -> dict[str, Any]:
    """The raw values behind a mean over seeds."""
    return {"what": "seed", "values": list(values), "names": [str(number) for number in numbers]}


def _commit(about: Machine | Published) -> str:
    return "unknown commit" if about.commit is None else about.commit[:12] + ("+" if about.dirty else "")


def _first(error: ValidationError) -> str:
    """The first mistake as a part of a sentence."""
    found = error.errors(include_url=False)[0]
    return f"its {error.title.lower()} {'.'.join(map(str, found['loc']))}: {found['msg'].lower()}"


def likelihood_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each data set and recipe of any of the runs, a column for each run."""
    return [
        {
            **about,
            "values": [{"found": run.bits.get(key), "trouble": run.trouble(*key, measured=False)} for run in runs],
        }
        for key, about in _subjects(runs)
    ]


def timing_rows(runs: Sequence[Run], quantities: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each quantity, data set and recipe of which any of the runs has a figure, a column for each run."""
    rows = []
    for quantity, label in quantities.items():
        for (dataset, recipe), about in _subjects(runs):
            found = [run.timings.get(dataset, {}).get(recipe, {}).get(quantity) for run in runs]
            if any(found):
                trouble = [run.trouble(dataset, recipe, measured=True) for run in runs]
                values = [
                    {"found": own and own.model_dump(), "trouble": why} for own, why in zip(found, trouble, strict=True)
                ]
                rows.append({**about, "quantity": label, "values": values})
    return rows


def verdict_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each claim that any of the runs judges, a column for each run."""
    titles = {name: claim.title for run in reversed(runs) for name, claim in run.verdicts.items()}
    names = dict.fromkeys(name for run in runs for name in run.verdicts)
    return [{"title": titles[name], "values": [run.verdicts.get(name) for run in runs]} for name in names]


def _subjects(runs: Sequence[Run]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Each data set with each recipe, as they first occur, with how they are called."""
    datasets = {name: found for run in reversed(runs) for name, found in run.provenance.datasets.items()}
    recipes = {name: look for run in reversed(runs) for name, look in run.provenance.recipes.items()}
    for dataset in dict.fromkeys(name for run in runs for name in run.provenance.datasets):
        for recipe in dict.fromkeys(name for run in runs for name in run.provenance.recipes):
            if any(recipe in run.provenance.recipes and dataset in run.provenance.datasets for run in runs):
                yield (dataset, recipe), {"dataset": datasets[dataset].title, "recipe": recipe, "look": recipes[recipe]}
