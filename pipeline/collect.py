"""The collect stage: the grid's cells, and only those, become the tables, verdicts and figures of `reports/`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import figures
from pipeline.claims import ClaimsFile, Scale, Subject, Times, judge, load_claims
from pipeline.console import exit_with, say
from pipeline.conversion import Code, batch_factor, honest, logit_bits, poster_in_bits, released_code
from pipeline.datasets import Dataset
from pipeline.files import replacing, write_json
from pipeline.params import PRESETS, Params, Recipe, load_params
from pipeline.provenance import provenance_of
from pipeline.records import (
    Cell,
    Key,
    Likelihood,
    Measurement,
    Results,
    Run,
    StageRecord,
    Unfinished,
    read_densities,
    read_results,
    read_samples,
    read_unfinished,
)
from pipeline.statistics import Estimate, mean_interval, median_interval, rounded
from pipeline.tables import curves_table, latents_table, results_table, timings_table, write_table

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
    "classification_accuracy",
    "accidents",
)
MIXTURE = ("status", "message", "settings", "entropy", "printed", "printed_honest", "models")
LATENT_FIGURES = ("mean", "variance", "variance_min", "variance_max", "radius_distance")
PHASES = ("training", "sampling")
# Bytes of a number; numbers that an optimiser keeps for each parameter: Adam two moments, SGD its momentum.
WIDTHS = {"float32": 4, "float64": 8}
STATES = {"adam": 2, "sgd": 1}
Subjects = Mapping[str, Mapping[str, Subject]]


def main() -> None:
    """Collect what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.collect",
        description="Read the cells of the grid and write their tables, metrics, verdicts and figures: metrics.json, "
        "timings.json, results.csv, latents.csv, timings.csv, curves.csv, claims.json, mixture.json, provenance.json "
        "and figures/.",
        epilog="example: python -m pipeline.collect",
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the parameter file (%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the data sets' folder (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the stages' folder (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="the folder to write (%(default)s)")
    parser.add_argument("--unfinished", type=Path, help="a list of cells to leave out and to call unfinished, in JSON")
    arguments = parser.parse_args()
    unfinished = read_unfinished(arguments.unfinished) if arguments.unfinished else []
    collect(arguments.params, arguments.data, arguments.runs, arguments.out, unfinished=unfinished)
    left_out = f", without {len(unfinished)} that are unfinished" if unfinished else ""
    say(f"collected the grid's cells into {arguments.out}{left_out}")


def collect(
    params: Path,
    data: Path,
    runs: Path,
    out: Path,
    *,
    paper: Path = PRESETS / "paper.yaml",
    unfinished: Sequence[Unfinished] = (),
) -> None:
    """Read the grid's cells and write the files of the report.

    Args:
        params: The parameter file, whose grid says which cells are read.
        data: The folder of the data sets.
        runs: The folder of the train, evaluate and measure stages.
        out: The folder to write; what else stands there stays.
        paper: The preset that our parameters are compared with.
        unfinished: Cells of the grid that have no figures yet; they are named as such.

    Raises:
        UserError: If a cell is missing or damaged, or was made with other parameters.
    """
    results = read_results(load_params(params), data, runs, unfinished)
    paper_params = load_params(paper)
    curves, timings = curves_table(results.cells), timings_table(results.measurements)
    tables = {
        "results.csv": results_table(results),
        "latents.csv": latents_table(results),
        "timings.csv": timings,
        "curves.csv": curves,
    }
    subjects = subjects_of(results, curves)
    contents = {
        "metrics.json": metrics_of(subjects),
        "timings.json": timings_of(subjects),
        "claims.json": claims_of(results, paper_params, subjects),
        "provenance.json": provenance_of(results, paper_params),
        "mixture.json": results.mixture.model_dump(include=set(MIXTURE)),
    }
    for name, table in tables.items():
        write_table(out / name, table)
    for name, content in contents.items():
        write_json(out / name, content)
    with replacing(out / "figures") as folder:
        folder.mkdir()
        densities = read_densities(runs, results.mixture)
        figures.mixture(folder / "mixture.svg", densities, results.mixture.box, results.mixture.points)
        for dataset in results.datasets:
            own = {name: table[table["dataset"] == dataset] for name, table in tables.items()}
            floors = memory_floors(dataset, results)
            draw(folder, dataset, figures.looks(results.params.grid.recipes), own, contents, floors)
            draw_images(folder, dataset, results)


def subjects_of(results: Results, curves: pd.DataFrame) -> dict[str, dict[str, Subject]]:
    """What was found, by data set and recipe, in the form that claims and metrics ask for."""
    model = ["dataset", "recipe", "seed", "model"]
    starts = curves.drop_duplicates(model).set_index(model)["holdout_bits_per_dim"].dropna().to_dict()
    found: dict[str, dict[str, Subject]] = {dataset: {} for dataset in results.datasets}
    measurements = {measured.key: measured for measured in results.measurements}
    for dataset, recipe in product(results.datasets, results.params.grid.recipes):
        cells = [cell for cell in results.cells if cell.key[:2] == (dataset, recipe)]
        unfinished = [cell for cell in results.unfinished if cell.key[:2] == (dataset, recipe)]
        classes = results.params.recipes[recipe].classes
        found[dataset][recipe] = _subject(classes, cells, measurements.get(Key(dataset, recipe)), unfinished, starts)
    return found


def _subject(
    classes: str,
    cells: Sequence[Cell],
    measured: Measurement | None,
    unfinished: Sequence[Unfinished],
    starts: Mapping[Any, float],
) -> Subject:
    metrics: dict[str, dict[int, float]] = {}
    for cell in cells:
        for name, value in cell_metrics(cell, starts).items():
            metrics.setdefault(name, {})[cell.run.seed] = value
    measurements = [] if measured is None else [measured]
    parts: list[Cell | Measurement | Unfinished] = [*cells, *measurements, *unfinished]
    failed = [f"{_name(part.key)}: {part.status}" for part in parts if part.status != "complete"]
    records: list[StageRecord] = [*measurements]
    records += [record for cell in cells for record in (cell.run, cell.evaluation)]
    return Subject(
        metrics=metrics,
        times=measured_times(measured) if measured else {},
        determinant=measured.determinant.model_dump() if measured and measured.determinant else None,
        classes=classes,
        devices=frozenset(record.environment.device for record in records),
        machines=frozenset({measured.environment.host} if measured else ()),
        trouble="; ".join(failed).replace("out_of_memory", "out of memory") or None,
    )


def _name(key: Key) -> str:
    return f"the measurement of {key.recipe}" if key.seed is None else f"seed {key.seed} of {key.recipe}"


def cell_metrics(cell: Cell, starts: Mapping[Any, float]) -> dict[str, float]:
    """The figures of a complete cell, none of a failed one; ``starts`` has each model's held-out bits/dim at first."""
    evaluation, run = cell.evaluation, cell.run
    if not cell.complete or evaluation.test is None:
        return {}
    best = {name: model.best_holdout_bits_per_dim for name, model in run.models.items()}
    gains = {
        name: starts[*cell.key, name] - after
        for name, after in best.items()
        if after is not None and (*cell.key, name) in starts
    }
    values: dict[str, float | None] = {
        "bits_per_dim": evaluation.test.bits_per_dim.mean,
        "bits_per_dim_median": evaluation.test.bits_per_dim.median,
        "poster_bits_per_pixel": evaluation.test.poster_bits_per_pixel,
        "holdout_bits_per_dim": _over_models(run, best),
        "holdout_improvement": _over_models(run, gains),
        "best_epoch": _over_models(run, {name: model.best_epoch for name, model in run.models.items()}),
        "sample_class_accuracy": evaluation.sample_class_accuracy,
        "classification_accuracy": evaluation.classification_accuracy,
    }
    accidents = [model.accidents for model in run.models.values() if model.accidents is not None]
    if accidents:
        values["accidents"] = sum(accidents)
    if run.parameters:
        values |= {"parameters_free": run.parameters.free, "parameters_stored": run.parameters.stored}
    if evaluation.round_trip:
        values["pixels_exact"] = evaluation.round_trip.pixels_exact
    if evaluation.latents:
        values |= {f"latent_{name}": getattr(evaluation.latents, name) for name in LATENT_FIGURES}
    return {name: value for name, value in values.items() if value is not None}


def _over_models(run: Run, values: Mapping[str, float | None]) -> float | None:
    """The mean over a run's models, weighted by their held-out images; None where a model has no value."""
    known = [value for name in run.models if (value := values.get(name)) is not None]
    weights = [model.holdout_images for model in run.models.values()]
    if len(known) < len(weights) or not any(weights):
        return None
    return float(np.average(known, weights=weights))


def measured_times(found: Measurement) -> dict[str, Times]:
    """Times and peaks of memory under the names that `timings.json` has, such as step_ms and memory_training_mib.

    The peak of memory is the allocator's on a GPU, and beside it stands the driver's for the whole process. On a CPU it
    is the process's, and beside it stands how far that lies above the process's size before the work.
    """
    times = {
        f"{name}_{timing.unit}": Times(**timing.model_dump())
        for name, timing in (found.times or {}).items()
        if timing is not None
    }
    for phase, memory in (found.memory or {}).items():
        if memory is None:
            continue
        if memory.allocated_peak_mib is not None:
            times[f"memory_{phase}_mib"] = Times([memory.allocated_peak_mib], "allocator", "MiB")
            if memory.gpu_process_mib is not None:
                times[f"memory_{phase}_gpu_process_mib"] = Times([memory.gpu_process_mib], "process", "MiB")
        else:
            above = memory.process_peak_mib - memory.process_start_mib
            times[f"memory_{phase}_mib"] = Times([memory.process_peak_mib], "process", "MiB")
            times[f"memory_{phase}_above_start_mib"] = Times([above], "process", "MiB")
    return times


def metrics_of(subjects: Subjects) -> dict[str, Any]:
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


def timings_of(subjects: Subjects) -> dict[str, Any]:
    """Medians of the raw samples of time and memory."""
    return {
        dataset: {
            recipe: {
                name: {**_interval_json("median", median_interval(times.samples)), "unit": times.unit, "per": times.per}
                | {key: value for key in ("batch", "images", "of") if (value := getattr(times, key)) is not None}
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


def claims_of(results: Results, paper: Params, subjects: Subjects) -> dict[str, Any]:
    """The content of `claims.json`: all of `claims.yaml` that a reader needs, and the verdicts on the paper's data."""
    ours = results.params
    claims = load_claims()
    same = frozenset(name for name in ours.grid.recipes if ours.recipes[name] == paper.recipes.get(name))
    scales = {
        name: Scale(ours.preset, dataset.title, bool(dataset.info["subset"]), same)
        for name, dataset in results.datasets.items()
        if dataset.in_paper
    }
    subjects = {name: subjects[name] for name in scales}
    return {
        **claims.model_dump(include={"paper", "principle", "poster", "references"}),
        "claims": [judge(claim, scales, subjects) for claim in claims.claims],
        "conversion": conversion_of(results, claims),
    }


def conversion_of(results: Results, claims: ClaimsFile) -> dict[str, Any]:
    """What the poster's likelihoods mean on each data set, and our own printed figures converted in the same way."""
    printed = next(row for row in claims.poster if row.quantity == "nll")
    codes: tuple[tuple[Code, float], ...] = (("lunet", printed.lunet), ("realnvp", printed.realnvp))
    poster = [
        {"title": dataset.title, "code": code, "printed": value}
        | {key: rounded(found) for key, found in poster_in_bits(dataset, code, value).items()}
        for dataset in results.datasets.values()
        if dataset.in_paper
        for code, value in codes
    ]
    checks = []
    for cell in results.cells:
        recipe, dataset = results.params.recipe(cell.key.recipe), results.datasets[cell.key.dataset]
        test, per_class = cell.evaluation.test, cell.evaluation.per_class
        if test is None or per_class is None or test.poster_bits_per_pixel is None:
            continue
        if (value := converted(per_class, recipe, dataset)) is not None:
            figures = (test.poster_bits_per_pixel, value, test.bits_per_dim.mean)
            named = dict(zip(("printed", "converted", "honest"), map(rounded, figures), strict=True))
            checks.append({"title": dataset.title, **cell.key._asdict(), **named})
    return {"poster": poster, "checks": checks}


def converted(per_class: Mapping[str, Likelihood], recipe: Recipe, dataset: Dataset) -> float | None:
    """A printed figure turned into bits per pixel by the data's Jacobian alone, to hold against the model's own figure.

    ``None`` where there is no printed figure.
    """
    code = released_code(recipe)
    margin = recipe.margin if isinstance(recipe.margin, tuple) else (recipe.margin, recipe.margin)
    total = 0.0
    for label, found in per_class.items():
        if found.poster_bits_per_pixel is None:
            return None
        factor = batch_factor(found.images if recipe.classes == "each" else len(dataset.test_images))
        logit = logit_bits(dataset.test_images[dataset.test_labels == int(label)], margin)
        total += found.images * honest(found.poster_bits_per_pixel, code, logit, factor)
    return total / len(dataset.test_images)


def draw(
    folder: Path,
    dataset: str,
    looks: Mapping[str, figures.Look],
    tables: Mapping[str, pd.DataFrame],
    contents: Mapping[str, Any],
    floors: Mapping[str, Mapping[str, float]],
) -> None:
    """Draw one data set's figures from its rows of the tables and the JSON files, each where there is something."""
    curves, timings = tables["curves.csv"], tables["timings.csv"]
    metrics, medians = contents["metrics.json"][dataset], contents["timings.json"][dataset]
    references = [row for row in contents["claims.json"]["references"] if row["dataset"] == dataset]
    if len(tables["latents.csv"]):
        figures.latents(folder / f"latents-{dataset}.svg", tables["latents.csv"], looks)
    if len(curves):
        figures.curves(folder / f"curves-{dataset}.svg", curves, looks)
        figures.progress(folder / f"progress-{dataset}.svg", curves, looks)
    bits = {recipe: found["bits_per_dim"] for recipe, found in metrics.items() if "bits_per_dim" in found}
    if bits:
        figures.likelihoods(folder / f"likelihood-{dataset}.svg", bits, references, looks)
    if timings["quantity"].isin(list(figures.TIMES)).any():
        poster = poster_times(contents["claims.json"]["poster"])
        figures.times(folder / f"times-{dataset}.svg", timings, looks, poster)
    peaks = {
        recipe: own
        for recipe, found in medians.items()
        if (own := {phase: found[name]["median"] for phase in PHASES if (name := f"memory_{phase}_mib") in found})
    }
    if peaks:
        figures.memory(folder / f"memory-{dataset}.svg", peaks, floors, looks)
    determinant = timings[timings["quantity"].str.startswith("determinant_")]
    if len(determinant):
        recipe = determinant["recipe"].iloc[0]
        own = determinant[determinant["recipe"] == recipe]
        figures.determinant(folder / f"determinant-{dataset}.svg", own, looks[recipe])


def memory_floors(dataset: str, results: Results) -> dict[str, dict[str, float]]:
    """The MiB below which a recipe's peaks cannot be, by recipe and phase: from the counts of parameters alone.

    Both hold the numbers that are stored; training has a gradient and the optimiser's state beside each free parameter.
    """
    floors: dict[str, dict[str, float]] = {}
    for measured in results.measurements:
        if measured.key.dataset != dataset or measured.parameters is None:
            continue
        recipe = results.params.recipe(measured.key.recipe)
        stored, free, width = measured.parameters.stored, measured.parameters.free, WIDTHS[recipe.dtype]
        own = {"sampling": stored * width / 2**20}
        if recipe.training is not None:
            own["training"] = (stored + free * (1 + STATES[recipe.training.optimizer])) * width / 2**20
        floors[measured.key.recipe] = own
    return floors


def poster_times(poster: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The poster's times that ours compare with, by quantity and recipe, in honest milliseconds."""
    return {
        row["figure"].removesuffix("_ms"): {
            recipe: row[recipe] / (row["factors"] or {}).get(recipe, 1) for recipe in ("lunet", "realnvp")
        }
        for row in poster
        if row["figure"]
    }


def draw_images(folder: Path, dataset: str, results: Results) -> None:
    """Write the samples of each recipe's first complete seed, and real test images in the same shape."""
    shape = (results.params.evaluate.sample_rows, results.params.evaluate.sample_columns)
    data = results.datasets[dataset]
    figures.images(folder / f"real-{dataset}.png", figures.real_images(data.test_images, data.test_labels, *shape))
    complete = [cell for cell in results.cells if cell.complete and cell.key.dataset == dataset]
    for recipe, cell in {cell.key.recipe: cell for cell in reversed(complete)}.items():
        figures.images(folder / f"samples-{dataset}-{recipe}.png", read_samples(cell))
        figures.images(folder / f"nearest-{dataset}-{recipe}.png", read_samples(cell, "nearest"))
        if cell.evaluation.interpolations:
            figures.images(folder / f"interpolations-{dataset}-{recipe}.png", read_samples(cell, "interpolations"))
        if cell.evaluation.fitted_base_bits_per_dim is not None:
            figures.images(folder / f"fitted_base-{dataset}-{recipe}.png", read_samples(cell, "fitted_base"))


if __name__ == "__main__":
    exit_with(main)
