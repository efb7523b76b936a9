"""The collect stage: the grid's cells, and only those, become the tables, verdicts and figures of `reports/`."""

from __future__ import annotations

import argparse
import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from pipeline import figures
from pipeline.claims import Scale, Subject, Times, judge, load_claims
from pipeline.console import UserError, exit_with, say
from pipeline.datasets import Dataset, load_dataset
from pipeline.files import read_json, replacing, write_json, write_text
from pipeline.params import PRESETS, Params, load_params
from pipeline.statistics import MEAN_INTERVAL, MEDIAN_INTERVAL, Estimate, mean_interval, median_interval, rounded

PositiveTime = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Status = Literal["complete", "diverged", "out_of_memory"]

HEADLINES = (
    "bits_per_dim",
    "bits_per_dim_median",
    "poster_bits_per_pixel",
    "holdout_bits_per_dim",
    "best_epoch",
    "parameters_free",
    "parameters_stored",
    "pixels_exact",
    "sample_class_accuracy",
)
PHASES = ("training", "sampling")
COMMANDS = {
    "data": "python -m pipeline.data --dataset {dataset} --out data/{dataset}",
    "train": "python -m pipeline.train --dataset {dataset} --recipe {recipe} --seed {seed} --out runs/train/{key}",
    "evaluate": "python -m pipeline.evaluate --dataset {dataset} --recipe {recipe} --seed {seed} "
    "--out runs/evaluate/{key}.json",
    "measure": "python -m pipeline.measure --dataset {dataset} --recipe {recipe} --out runs/measure/{key}.json",
}


class Record(BaseModel):
    """A part of a stage's file: what collect reads of it, every number finite; more may stand in the file."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Environment(Record):
    """Where and when a cell ran."""

    time: str
    host: str
    system: str
    processor: str
    cores: int
    memory_gib: FiniteFloat
    device: str
    gpu: str | None
    gpu_driver: str | None
    cuda: str | None
    threads: int
    python: str
    torch: str
    numpy: str
    commit: str | None
    dirty: bool | None


class Parameters(Record):
    """How many numbers a model holds, and how many of them are free."""

    stored: int
    free: int


class Model(Record):
    """How the training of one model went."""

    status: Status
    holdout_images: int
    best_epoch: FiniteFloat | None
    best_holdout_bits_per_dim: FiniteFloat | None


class Run(Record):
    """`runs/train/<key>/run.json`."""

    dataset: str
    recipe: str
    seed: int
    status: Status
    message: str | None
    seconds: FiniteFloat
    parameters: Parameters | None
    recipe_params: dict[str, Any]
    models: dict[str, Model]
    environment: Environment


class Spread(Record):
    """Bits per dimension over some images."""

    mean: FiniteFloat
    median: FiniteFloat
    std: FiniteFloat
    min: FiniteFloat
    max: FiniteFloat
    worst_percent_share: FiniteFloat


class Likelihood(Record):
    """The likelihood of the images of one class, or of all."""

    images: int
    bits_per_dim: Spread
    poster_bits_per_pixel: FiniteFloat | None = None


class RoundTrip(Record):
    """What survives the way to the latent and back."""

    pixels_exact: FiniteFloat
    pixels_within_one: FiniteFloat


class Latents(Record):
    """Moments of the latents of test images."""

    mean: FiniteFloat
    variance: FiniteFloat
    variance_min: FiniteFloat
    variance_max: FiniteFloat


class Evaluation(Record):
    """`runs/evaluate/<key>.json`."""

    dataset: str
    recipe: str
    seed: int
    status: Status
    message: str | None
    classes: Literal["all", "each"]
    draws: int
    test: Likelihood | None
    per_class: dict[str, Likelihood] | None
    round_trip: RoundTrip | None
    latents: Latents | None
    sample_class_accuracy: FiniteFloat | None
    environment: Environment


class Timing(Record):
    """The raw samples of one time."""

    unit: str
    per: str
    batch: int
    samples: list[PositiveTime] = Field(min_length=1)


class Memory(Record):
    """Memory of a process, in MiB; the last three only on a GPU."""

    process_start_mib: FiniteFloat
    process_peak_mib: FiniteFloat
    allocated_peak_mib: FiniteFloat | None
    reserved_peak_mib: FiniteFloat | None
    gpu_process_mib: FiniteFloat | None


class Determinant(Record):
    """Raw times of both ways to a log-determinant, a list of samples for each width."""

    widths: list[int]
    diagonal_ms: list[list[PositiveTime]]
    slogdet_ms: list[list[PositiveTime]]


class Measurement(Record):
    """`runs/measure/<key>.json`."""

    dataset: str
    recipe: str
    status: Status
    message: str | None
    device: str
    times: dict[str, Timing | None] | None
    memory: dict[str, Memory | None] | None
    determinant: Determinant | None
    environment: Environment


@dataclass(frozen=True)
class Cell:
    """One training with its evaluation; ``history`` holds the finite rows of `history.csv`."""

    run: Run
    evaluation: Evaluation
    history: list[dict[str, Any]]

    @property
    def complete(self) -> bool:
        """Whether both training and evaluation came to their end."""
        return self.run.status == self.evaluation.status == "complete"

    @property
    def status(self) -> Status:
        """What became of the cell: of its training, or else of its evaluation."""
        return self.run.status if self.run.status != "complete" else self.evaluation.status

    @property
    def message(self) -> str | None:
        """What the failing stage said."""
        return without_paths(self.run.message or self.evaluation.message)


@dataclass(frozen=True)
class Results:
    """Everything that collect reads."""

    params: Params
    datasets: dict[str, Dataset]
    cells: list[Cell]
    measurements: list[Measurement]


def main() -> None:
    """Collect what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.collect",
        description="Read the cells of the grid and write their tables, metrics, verdicts and figures: metrics.json, "
        "timings.json, results.csv, timings.csv, curves.csv, claims.json, provenance.json and figures/.",
        epilog="example: python -m pipeline.collect",
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the parameter file (%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the data sets' folder (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the stages' folder (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="the folder to write (%(default)s)")
    arguments = parser.parse_args()
    collect(arguments.params, arguments.data, arguments.runs, arguments.out)
    say(f"collected the grid's cells into {arguments.out}")


def collect(params: Path, data: Path, runs: Path, out: Path, *, paper: Path = PRESETS / "paper.yaml") -> None:
    """Read the grid's cells and write the files of the report.

    Args:
        params: The parameter file, whose grid says which cells are read.
        data: The folder of the data sets.
        runs: The folder of the train, evaluate and measure stages.
        out: The folder to write; what else stands there stays.
        paper: The preset that our parameters are compared with.

    Raises:
        UserError: If a cell is missing or damaged, or was made with other parameters.
    """
    results = read_results(load_params(params), data, runs)
    paper_params = load_params(paper)
    subjects = subjects_of(results)
    tables = {
        "results.csv": (RESULT_COLUMNS, result_rows(results)),
        "timings.csv": (TIMING_COLUMNS, timing_rows(results.measurements)),
        "curves.csv": (CURVE_COLUMNS, curve_rows(results.cells)),
    }
    for name, (columns, rows) in tables.items():
        write_csv(out / name, columns, rows)
    contents = {
        "metrics.json": metrics_of(subjects),
        "timings.json": timings_of(subjects),
        "claims.json": claims_of(results, paper_params, subjects),
        "provenance.json": provenance_of(results, paper_params),
    }
    for name, content in contents.items():
        write_json(out / name, content)
    with replacing(out / "figures") as folder:
        folder.mkdir()
        for dataset in results.datasets:
            draw(folder, dataset, results, contents)
            draw_images(folder, dataset, results, runs / "samples")


def read_results(params: Params, data: Path, runs: Path) -> Results:
    """Read exactly the grid's cells; a missing one is a `UserError` that names the file and the command."""
    grid = params.grid
    cells, measurements = [], []
    for dataset in grid.datasets:
        for recipe in grid.recipes:
            names: dict[str, Any] = {"dataset": dataset, "recipe": recipe}
            cells += [read_cell(runs, params, {**names, "seed": seed}) for seed in grid.seeds]
            key = f"{dataset}-{recipe}"
            measurements.append(_read(Measurement, runs / "measure" / f"{key}.json", "measure", names, key))
    return Results(params, {name: load_dataset(data / name) for name in grid.datasets}, cells, measurements)


def read_cell(runs: Path, params: Params, names: dict[str, Any]) -> Cell:
    """Read one training and its evaluation."""
    key = "{dataset}-{recipe}-{seed}".format_map(names)
    folder = runs / "train" / key
    run = _read(Run, folder / "run.json", "train", names, key)
    if run.recipe_params != params.recipe(names["recipe"]).model_dump(mode="json"):
        raise UserError(
            f"{folder / 'run.json'} was trained with other parameters than recipes.{names['recipe']} has now; "
            f"train it again with: {command('train', key, names)}"
        )
    evaluation = _read(Evaluation, runs / "evaluate" / f"{key}.json", "evaluate", names, key)
    history = folder / "history.csv"
    _require(history, "train", names, key)
    return Cell(run, evaluation, read_history(history, complete=run.status == "complete"))


R = TypeVar("R", bound=Record)


def _read(kind: type[R], path: Path, stage: str, names: Mapping[str, Any], key: str) -> R:
    _require(path, stage, names, key)
    try:
        record = kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: {place} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}; "
            f"write it again with: {command(stage, key, names)}"
        ) from None
    found = {name: getattr(record, name) for name in names}
    if found != names:
        raise UserError(f"{path} is about {found} and not {dict(names)}; run: {command(stage, key, names)}")
    return record


def _require(path: Path, stage: str, names: Mapping[str, Any], key: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing; the grid asks for it. Run: dvc repro, or: {command(stage, key, names)}")


def command(stage: str, key: str, names: Mapping[str, Any]) -> str:
    """The exact command that writes one cell."""
    return COMMANDS[stage].format(**names, key=key)


def read_history(path: Path, *, complete: bool) -> list[dict[str, Any]]:
    """The rows of a `history.csv`.

    A number that is not finite is an error in a run that is complete; in a failed one the model's rows end before it.
    """
    rows: list[dict[str, Any]] = []
    ended: set[str] = set()
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            try:
                row: dict[str, Any] = {"model": line["model"]}
                for column in CURVE_COLUMNS[4:]:
                    row[column] = float(line[column]) if line[column] else None
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path} is damaged ({error!r}): delete it and run dvc repro again") from None
            if not all(math.isfinite(value) for value in row.values() if isinstance(value, float)):
                if complete:
                    raise UserError(f"{path} holds a number that is not finite, though the run is called complete")
                ended.add(row["model"])
            if row["model"] not in ended:
                rows.append(row)
    return rows


def without_paths(message: str | None) -> str | None:
    """A message in which absolute paths, which tell of the machine, are left out."""
    return message and re.sub(r"(?<![\w.])(?:[A-Za-z]:\\|~?/)[\w.+-]+(?:[\\/][\w.+-]+)+", "<path>", message)


RESULT_COLUMNS = (
    "dataset", "recipe", "seed", "class", "class_name", "status", "message", "classes", "draws", "images",
    "bits_per_dim_mean", "bits_per_dim_median", "bits_per_dim_std", "bits_per_dim_min", "bits_per_dim_max",
    "worst_percent_share", "poster_bits_per_pixel", "training_seconds", "device", "host", "commit", "time",
)  # fmt: skip
TIMING_COLUMNS = (
    "dataset", "recipe", "quantity", "width", "batch", "per", "unit", "repetition", "value",
    "device", "host", "commit", "time",
)  # fmt: skip
CURVE_COLUMNS = (
    "dataset", "recipe", "seed", "model",
    "step", "epoch", "seconds", "learning_rate", "train_bits_per_dim", "holdout_bits_per_dim",
)  # fmt: skip

Row = dict[str, Any]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows in the columns' order; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _where(environment: Environment) -> Row:
    commit = environment.commit and environment.commit[:12] + ("+" if environment.dirty else "")
    return {"device": environment.device, "host": environment.host, "commit": commit, "time": environment.time}


def result_rows(results: Results) -> list[Row]:
    """A row for each cell as a whole (class "all"), and one for each class of a complete cell."""
    rows = []
    for cell in results.cells:
        evaluation = cell.evaluation
        shared = {
            **{name: getattr(evaluation, name) for name in ("dataset", "recipe", "seed", "classes", "draws")},
            "status": cell.status,
            "message": cell.message,
            **_where(evaluation.environment),
        }
        overall = {"class": "all", "training_seconds": cell.run.seconds}
        if not cell.complete or evaluation.test is None:
            rows.append({**shared, **overall})
            continue
        rows.append({**shared, **overall, **_likelihood_row(evaluation.test)})
        names = results.datasets[evaluation.dataset].class_names
        for label, found in sorted((evaluation.per_class or {}).items(), key=lambda item: int(item[0])):
            rows.append({**shared, "class": label, "class_name": names[int(label)], **_likelihood_row(found)})
    return rows


def _likelihood_row(found: Likelihood) -> Row:
    spread = found.bits_per_dim
    return {
        "images": found.images,
        **{f"bits_per_dim_{name}": getattr(spread, name) for name in ("mean", "median", "std", "min", "max")},
        "worst_percent_share": spread.worst_percent_share,
        "poster_bits_per_pixel": found.poster_bits_per_pixel,
    }


def curve_rows(cells: Iterable[Cell]) -> list[Row]:
    """The histories of all cells, one after the other."""
    return [
        {"dataset": cell.run.dataset, "recipe": cell.run.recipe, "seed": cell.run.seed, **row}
        for cell in cells
        for row in cell.history
    ]


def timing_rows(measurements: Iterable[Measurement]) -> list[Row]:
    """Every raw sample of time and memory, a row each."""
    rows = []
    for found in measurements:
        shared = {"dataset": found.dataset, "recipe": found.recipe, **_where(found.environment)}
        for quantity, width, times in _raw_samples(found):
            about = {"quantity": quantity, "width": width, "batch": times.batch, "per": times.per, "unit": times.unit}
            rows += [
                {**shared, **about, "repetition": number, "value": value} for number, value in enumerate(times.samples)
            ]
    return rows


def _raw_samples(found: Measurement) -> Iterable[tuple[str, int | None, Times]]:
    for name, timing in (found.times or {}).items():
        if timing is not None:
            yield name, None, Times(list(timing.samples), timing.per, timing.unit, timing.batch)
    for phase, memory in (found.memory or {}).items():
        for field, value in memory.model_dump().items() if memory else ():
            if value is not None:
                yield f"memory_{phase}_{field.removesuffix('_mib')}", None, Times([value], "process", "MiB")
    if found.determinant is not None:
        pairs = {"diagonal": found.determinant.diagonal_ms, "slogdet": found.determinant.slogdet_ms}
        for name, lists in pairs.items():
            for width, samples in zip(found.determinant.widths, lists, strict=True):
                yield f"determinant_{name}", width, Times(list(samples), "matrix", "ms")


def subjects_of(results: Results) -> dict[str, dict[str, Subject]]:
    """What was found, by data set and recipe, in the form that claims and metrics ask for."""
    grid = results.params.grid
    found: dict[str, dict[str, Subject]] = {}
    for dataset in grid.datasets:
        found[dataset] = {}
        for recipe in grid.recipes:
            cells = [cell for cell in results.cells if (cell.run.dataset, cell.run.recipe) == (dataset, recipe)]
            measured = [m for m in results.measurements if (m.dataset, m.recipe) == (dataset, recipe)]
            found[dataset][recipe] = _subject(recipe, cells, measured[0])
    return found


def _subject(recipe: str, cells: Sequence[Cell], measured: Measurement) -> Subject:
    metrics: dict[str, dict[int, float]] = {}
    for cell in cells:
        for name, value in cell_metrics(cell).items():
            metrics.setdefault(name, {})[cell.run.seed] = value
    failed = [f"seed {cell.run.seed} of {recipe}: {_words(cell.status)}" for cell in cells if not cell.complete]
    if measured.status != "complete":
        failed.append(f"the measurement of {recipe}: {_words(measured.status)}")
    environments = [
        environment for cell in cells for environment in (cell.run.environment, cell.evaluation.environment)
    ]
    environments.append(measured.environment)
    return Subject(
        metrics=metrics,
        times=measured_times(measured),
        determinant=measured.determinant.model_dump() if measured.determinant else None,
        classes=cells[0].evaluation.classes,
        devices=frozenset(environment.device for environment in environments),
        machines=frozenset({measured.environment.host}),
        trouble="; ".join(failed) or None,
    )


def _words(status: Status) -> str:
    return status.replace("_", " ")


def cell_metrics(cell: Cell) -> dict[str, float]:
    """The figures of one complete cell; none of a failed one."""
    evaluation, run = cell.evaluation, cell.run
    if not cell.complete or evaluation.test is None:
        return {}
    values: dict[str, float | None] = {
        "bits_per_dim": evaluation.test.bits_per_dim.mean,
        "bits_per_dim_median": evaluation.test.bits_per_dim.median,
        "poster_bits_per_pixel": evaluation.test.poster_bits_per_pixel,
        "holdout_bits_per_dim": _over_models(
            run, {name: m.best_holdout_bits_per_dim for name, m in run.models.items()}
        ),
        "holdout_improvement": _improvement(cell),
        "best_epoch": _over_models(run, {name: model.best_epoch for name, model in run.models.items()}),
        "sample_class_accuracy": evaluation.sample_class_accuracy,
    }
    if run.parameters:
        values |= {"parameters_free": run.parameters.free, "parameters_stored": run.parameters.stored}
    if evaluation.round_trip:
        values["pixels_exact"] = evaluation.round_trip.pixels_exact
    if evaluation.latents:
        values |= {f"latent_{name}": value for name, value in evaluation.latents.model_dump().items()}
    return {name: value for name, value in values.items() if value is not None}


def _over_models(run: Run, values: Mapping[str, float | None]) -> float | None:
    """The mean over a run's models, weighted by their held-out images; None where a model has no value."""
    known = [
        (value, model.holdout_images) for name, model in run.models.items() if (value := values.get(name)) is not None
    ]
    if len(known) < len(run.models) or not sum(weight for _, weight in known):
        return None
    return float(np.average([value for value, _ in known], weights=[weight for _, weight in known]))


def _improvement(cell: Cell) -> float | None:
    """How far training lowered the held-out figure from its value at the start, over the run's models."""
    start = {row["model"]: row["holdout_bits_per_dim"] for row in reversed(cell.history)}
    best = {name: model.best_holdout_bits_per_dim for name, model in cell.run.models.items()}
    gains = {
        name: before - after
        for name, after in best.items()
        if after is not None and (before := start.get(name)) is not None
    }
    return _over_models(cell.run, gains)


def measured_times(found: Measurement) -> dict[str, Times]:
    """Times and peaks of memory under the names that `timings.json` has, such as step_ms and memory_training_mib.

    The peak of memory is the allocator's on a GPU. On a CPU it is the process's, and beside it stands how far that lies
    above the process's size before the work.
    """
    times = {
        f"{name}_{timing.unit}": Times(list(timing.samples), timing.per, timing.unit, timing.batch)
        for name, timing in (found.times or {}).items()
        if timing is not None
    }
    for phase, memory in (found.memory or {}).items():
        if memory is None:
            continue
        on_gpu = memory.allocated_peak_mib is not None
        peak = memory.allocated_peak_mib if memory.allocated_peak_mib is not None else memory.process_peak_mib
        times[f"memory_{phase}_mib"] = Times([peak], "allocator" if on_gpu else "process", "MiB")
        if not on_gpu:
            above = memory.process_peak_mib - memory.process_start_mib
            times[f"memory_{phase}_above_start_mib"] = Times([above], "process", "MiB")
    return times


def metrics_of(subjects: Mapping[str, Mapping[str, Subject]]) -> dict[str, Any]:
    """The headline figures: means over the complete seeds; a recipe without one has none."""
    return {
        dataset: {
            recipe: {
                name: _interval_json("mean", mean_interval(list(subject.metrics[name].values())))
                for name in HEADLINES
                if name in subject.metrics
            }
            for recipe, subject in by_recipe.items()
        }
        for dataset, by_recipe in subjects.items()
    }


def timings_of(subjects: Mapping[str, Mapping[str, Subject]]) -> dict[str, Any]:
    """Medians of the raw samples of time and memory."""
    return {
        dataset: {
            recipe: {
                name: {**_interval_json("median", median_interval(times.samples)), "unit": times.unit, "per": times.per}
                | ({} if times.batch is None else {"batch": times.batch})
                for name, times in subject.times.items()
            }
            for recipe, subject in by_recipe.items()
        }
        for dataset, by_recipe in subjects.items()
    }


def _interval_json(name: str, estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.low, estimate.high
    return {
        name: rounded(estimate.value),
        "ci_low": None if low is None else rounded(low),
        "ci_high": None if high is None else rounded(high),
        "n": estimate.n,
    }


def claims_of(results: Results, paper: Params, subjects: Mapping[str, Mapping[str, Subject]]) -> dict[str, Any]:
    """The content of `claims.json`: all of `claims.yaml` that a reader needs, and the verdicts."""
    ours = results.params
    claims = load_claims()
    same = frozenset(name for name in ours.grid.recipes if ours.recipes[name] == paper.recipes.get(name))
    scales = {
        name: Scale(ours.preset, dataset.title, bool(dataset.info["subset"]), same)
        for name, dataset in results.datasets.items()
    }
    return {
        **claims.model_dump(include={"paper", "principle", "poster", "references"}),
        "claims": [judge(claim, scales, subjects) for claim in claims.claims],
    }


def provenance_of(results: Results, paper: Params) -> dict[str, Any]:
    """Where the results come from: parameters, data, machines and commands."""
    params = results.params
    ours = _resolved(params)
    recipes = figures.looks(params.grid.recipes)
    return {
        "preset": params.preset,
        "intervals": {"mean": MEAN_INTERVAL, "median": MEDIAN_INTERVAL},
        "datasets": {name: dataset.info for name, dataset in results.datasets.items()},
        "recipes": {name: {"label": look.label, "colour": look.colour} for name, look in recipes.items()},
        "seeds": list(params.grid.seeds),
        "cells": _statuses(results),
        "environments": _environments(results),
        "commands": _commands(params),
        "params": ours,
        "differences": differences(ours, _resolved(paper)),
    }


def _resolved(params: Params) -> dict[str, Any]:
    """The parameters as plain values, without the report's own and without folders of the machine."""
    values = params.model_dump(mode="json", exclude={"report"})
    for source in values["data"].values():
        source["folder"] = source["folder"] and "<path>"
    return values


def differences(ours: Mapping[str, Any], paper: Mapping[str, Any], above: str = "") -> list[dict[str, Any]]:
    """The keys whose values differ, with both values; None where a side lacks the key."""
    rows = []
    for key in sorted({*ours, *paper}):
        here, there = ours.get(key), paper.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            rows += differences(here, there, f"{above}{key}.")
        elif here != there:
            sides = ("(a section)" if isinstance(value, Mapping) else value for value in (here, there))
            rows.append(dict(zip(("key", "ours", "paper"), (f"{above}{key}", *sides), strict=True)))
    return rows


def _statuses(results: Results) -> list[Row]:
    """What became of every cell of the grid."""
    names = ("stage", "dataset", "recipe", "seed", "status", "message")
    rows: list[tuple[Any, ...]] = [
        ("train", c.run.dataset, c.run.recipe, c.run.seed, c.status, c.message) for c in results.cells
    ]
    rows += [("measure", m.dataset, m.recipe, None, m.status, without_paths(m.message)) for m in results.measurements]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _environments(results: Results) -> list[dict[str, Any]]:
    """Each distinct environment once, with the cells that ran in it and when the first and the last of them did."""
    ran: list[tuple[str, str, Environment]] = []
    for cell in results.cells:
        key = f"{cell.run.dataset}-{cell.run.recipe}-{cell.run.seed}"
        ran += [("train", key, cell.run.environment), ("evaluate", key, cell.evaluation.environment)]
    ran += [("measure", f"{found.dataset}-{found.recipe}", found.environment) for found in results.measurements]
    groups: dict[str, dict[str, Any]] = {}
    for stage, key, environment in ran:
        about = environment.model_dump(exclude={"time"})
        group = groups.setdefault(repr(about), {"environment": about, "cells": {}, "times": []})
        group["cells"].setdefault(stage, []).append(key)
        group["times"].append(environment.time)
    return [
        {**group, "first": min(times), "last": max(times)}
        for group in groups.values()
        for times in [group.pop("times")]
    ]


def _commands(params: Params) -> dict[str, list[str]]:
    """The exact commands of every cell, by stage."""
    grid = params.grid
    commands: dict[str, list[str]] = {"data": [COMMANDS["data"].format(dataset=dataset) for dataset in grid.datasets]}
    for stage in ("train", "evaluate", "measure"):
        seeds: Sequence[int | None] = [None] if stage == "measure" else grid.seeds
        commands[stage] = [
            command(
                stage,
                "-".join(str(part) for part in (dataset, recipe, seed) if part is not None),
                {"dataset": dataset, "recipe": recipe, "seed": seed},
            )
            for dataset in grid.datasets
            for recipe in grid.recipes
            for seed in seeds
        ]
    return {**commands, "collect": ["python -m pipeline.collect"], "report": ["python -m pipeline.report"]}


def draw(folder: Path, dataset: str, results: Results, contents: Mapping[str, Any]) -> None:
    """Draw one data set's figures, each where there is something to draw.

    Args:
        folder: The folder to draw into.
        dataset: The data set.
        results: What was read.
        contents: The contents of the JSON files, by name.
    """
    looks = figures.looks(results.params.grid.recipes)
    curves = [row for row in curve_rows(results.cells) if row["dataset"] == dataset]
    timings = [row for row in timing_rows(results.measurements) if row["dataset"] == dataset]
    metrics, medians = contents["metrics.json"][dataset], contents["timings.json"][dataset]
    references = [row for row in contents["claims.json"]["references"] if row["dataset"] == dataset]
    if curves:
        figures.curves(folder / f"curves-{dataset}.svg", curves, looks)
    bits = {recipe: found["bits_per_dim"] for recipe, found in metrics.items() if "bits_per_dim" in found}
    if bits:
        figures.likelihoods(folder / f"likelihood-{dataset}.svg", bits, references, looks)
    if any(row["quantity"] in figures.TIMES for row in timings):
        poster = poster_times(contents["claims.json"]["poster"])
        figures.times(folder / f"times-{dataset}.svg", timings, looks, poster)
    peaks = {
        recipe: {phase: found[f"memory_{phase}_mib"]["median"] for phase in PHASES if f"memory_{phase}_mib" in found}
        for recipe, found in medians.items()
    }
    if any(peaks.values()):
        figures.memory(folder / f"memory-{dataset}.svg", {name: found for name, found in peaks.items() if found}, looks)
    recipes = [row["recipe"] for row in timings if row["quantity"] == "determinant_diagonal"]
    if recipes:
        own = [row for row in timings if row["recipe"] == recipes[0]]
        figures.determinant(folder / f"determinant-{dataset}.svg", own, looks[recipes[0]])


def poster_times(poster: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The poster's times that ours compare with, by quantity and recipe, in honest milliseconds."""
    return {
        row["stopwatch"].removesuffix("_ms"): {
            recipe: row[recipe] / (row["factors"] or {}).get(recipe, 1) for recipe in ("lunet", "realnvp")
        }
        for row in poster
        if (row["stopwatch"] or "").endswith("_ms")
    }


def draw_images(folder: Path, dataset: str, results: Results, samples: Path) -> None:
    """Write the samples of each recipe's first complete seed, and real test images in the same shape."""
    shape = (results.params.evaluate.sample_rows, results.params.evaluate.sample_columns)
    data = results.datasets[dataset]
    real = figures.real_images(data.test_images, data.test_labels, *shape)
    figures.images(folder / f"real-{dataset}.png", real)
    drawn: set[str] = set()
    for cell in results.cells:
        if cell.run.dataset == dataset and cell.complete and cell.run.recipe not in drawn:
            drawn.add(cell.run.recipe)
            figures.images(folder / f"samples-{dataset}-{cell.run.recipe}.png", read_samples(samples, cell))


def read_samples(folder: Path, cell: Cell) -> NDArray[np.uint8]:
    """The grid of samples of a complete cell."""
    names = {name: getattr(cell.run, name) for name in ("dataset", "recipe", "seed")}
    key = "{dataset}-{recipe}-{seed}".format_map(names)
    path = folder / key / "samples.npy"
    _require(path, "evaluate", names, key)
    grid: NDArray[np.uint8] = np.load(path, allow_pickle=False)
    if grid.ndim != 4 or grid.dtype != np.uint8 or grid.size == 0:
        raise UserError(
            f"{path} should be a grid (rows, columns, height, width) of uint8, but is {grid.shape} of {grid.dtype}; "
            f"write it again with: {command('evaluate', key, names)}"
        )
    return grid


if __name__ == "__main__":
    exit_with(main)
