"""The metrics of each cell, and the headline files `metrics.json` and `timings.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.cell import Key
from pipeline.core.record import StageRecord
from pipeline.measuring.record import Measurement
from pipeline.results.evidence import Subject, Times
from pipeline.results.reading import Cell, Results
from pipeline.results.statistics import Estimate, mean_interval, median_interval, round_significant
from pipeline.results.unfinished import Unfinished
from pipeline.training.record import Run

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
    "infinite_pixels",
)
LATENT_FIGURES = ("mean", "variance", "variance_min", "variance_max", "radius_distance")
Subjects = Mapping[str, Mapping[str, Subject]]


def subjects_of(results: Results, curves: pd.DataFrame) -> dict[str, dict[str, Subject]]:
    """The figures by data set and recipe, in the form that claims and metrics use."""
    model = ["dataset", "recipe", "seed", "model"]
    starts = curves.drop_duplicates(model).set_index(model)["holdout_bits_per_dim"].dropna().to_dict()
    subjects: dict[str, dict[str, Subject]] = {dataset: {} for dataset in results.datasets}
    measurements = {measured.key: measured for measured in results.measurements}
    for dataset, recipe in product(results.datasets, results.params.grid.recipes):
        cells = [cell for cell in results.cells if cell.key[:2] == (dataset, recipe)]
        unfinished = [cell for cell in results.unfinished if cell.key[:2] == (dataset, recipe)]
        classes = results.params.recipes[recipe].classes
        subjects[dataset][recipe] = _subject(classes, cells, measurements.get(Key(dataset, recipe)), unfinished, starts)
    return subjects


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
    failed = [f"{_description(part.key)}: {part.status}" for part in parts if part.status != "complete"]
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


def _description(key: Key) -> str:
    return f"the measurement of {key.recipe}" if key.seed is None else f"seed {key.seed} of {key.recipe}"


def cell_metrics(cell: Cell, starts: Mapping[Any, float]) -> dict[str, float]:
    """The figures of a complete cell, none of a failed one.

    ``starts`` contains the held-out bits/dim of each model's initialisation.
    """
    evaluation, run = cell.evaluation, cell.run
    if not cell.complete or evaluation.test is None:
        return {}
    best = {name: model.best_holdout_bits_per_dim for name, model in run.models.items()}
    gains = {
        name: starts[*cell.key, name] - trained
        for name, trained in best.items()
        if trained is not None and (*cell.key, name) in starts
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
    infinite_pixels = [model.infinite_pixels for model in run.models.values() if model.infinite_pixels is not None]
    if infinite_pixels:
        values["infinite_pixels"] = sum(infinite_pixels)
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


def measured_times(measurement: Measurement) -> dict[str, Times]:
    """Times and peak memory under the names of `timings.json`, such as step_ms and memory_training_mib.

    On a GPU the peak is the allocator's; a second entry gives the driver's figure for the whole process. On a CPU the
    peak is the process's; a second entry gives its increase over the process's memory before the work.
    """
    times = {
        f"{name}_{timing.unit}": Times(**timing.model_dump())
        for name, timing in (measurement.times or {}).items()
        if timing is not None
    }
    for phase, memory in (measurement.memory or {}).items():
        if memory is None:
            continue
        if memory.allocated_peak_mib is not None:
            times[f"memory_{phase}_mib"] = Times([memory.allocated_peak_mib], "allocator", "MiB")
            if memory.gpu_process_mib is not None:
                times[f"memory_{phase}_gpu_process_mib"] = Times([memory.gpu_process_mib], "process", "MiB")
        else:
            increase = memory.process_peak_mib - memory.process_start_mib
            times[f"memory_{phase}_mib"] = Times([memory.process_peak_mib], "process", "MiB")
            times[f"memory_{phase}_above_start_mib"] = Times([increase], "process", "MiB")
    return times


def metrics_of(subjects: Subjects) -> dict[str, Any]:
    """The headline figures: means over the complete seeds; a recipe without a complete seed has no figures."""
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
        name: round_significant(estimate.value),
        "ci_low": None if low is None else round_significant(low),
        "ci_high": None if high is None else round_significant(high),
        "n": estimate.n,
    }
