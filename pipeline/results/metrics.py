"""The metrics of each cell, and the headline files `metrics.json` and `timings.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from pipeline.measuring.record import Measurement
from pipeline.results.reading import Cell, Results
from pipeline.results.statistics import Estimate, mean_interval, median_over_processes
from pipeline.results.tables import LATENT
from pipeline.results.verdicts import Subject, Subjects, Times
from pipeline.training.record import Run

# What `timings.json` has of a figure beside its median, where it is known.
ADDED = ("batch", "images", "of", "precision", "gpu_process")
# The metrics that only claims use; `metrics.json` has all others, in the order of `cell_metrics`.
FOR_CLAIMS = ("holdout_improvement", "pixels_lost", *(f"latent_{name}" for name in LATENT))


def subjects_of(results: Results, curves: pd.DataFrame) -> dict[str, dict[str, Subject]]:
    """The figures by data set and recipe, in the form that claims and metrics use."""
    model = ["dataset", "recipe", "seed", "model"]
    starts = curves.drop_duplicates(model).set_index(model)["holdout_bits_per_dim"].dropna().to_dict()
    subjects: dict[str, dict[str, Subject]] = {dataset: {} for dataset in results.datasets}
    for dataset, recipe in product(results.datasets, results.params.grid.recipes):
        cells = [cell for cell in results.cells if cell.key[:2] == (dataset, recipe)]
        measured = results.measured(dataset, recipe)
        environments = [part.environment for cell in cells for part in (cell.run, cell.evaluation)]
        environments += [measured.environment] if measured else []
        by_seed = {cell.run.seed: values for cell in cells if (values := cell_metrics(cell, starts))}
        metrics = {
            name: {seed: value for seed, values in by_seed.items() if (value := values[name]) is not None}
            for name in next(iter(by_seed.values()), ())
        }
        subjects[dataset][recipe] = Subject(
            metrics={name: values for name, values in metrics.items() if values},
            times=measured_times(measured) if measured else {},
            determinant=next((found.determinant for found in results.measurements if found.determinant), None),
            classes=results.params.recipes[recipe].classes,
            devices=frozenset(environment.device for environment in environments),
            machines=frozenset([measured.environment.host] if measured else []),
            trouble="; ".join(troubles_of(results, dataset, recipe)) or None,
        )
    return subjects


def troubles_of(results: Results, dataset: str, recipe: str) -> list[str]:
    """Why figures of a recipe on a data set may be missing: each failed or unfinished cell, or no measurement."""
    measured = results.measured(dataset, recipe)
    failures = [cell for cell in results.statuses if cell.recipe == recipe and cell.status != "complete"]
    seeds = [cell for cell in failures if cell.stage != "measure" and cell.dataset == dataset]
    measurements = [cell for cell in failures if cell.stage == "measure" and (not measured or cell.key == measured.key)]
    troubles = [f"seed {cell.seed} of {recipe}: {cell.summary}" for cell in seeds]
    troubles += [f"the measurement of {recipe}: {cell.summary}" for cell in measurements]
    if measured is None and not measurements:
        height, width = results.image_shape(dataset)
        troubles.append(f"{recipe} was measured on no images of {height}×{width}; add {dataset} to measure.datasets")
    return troubles


def cell_metrics(cell: Cell, starts: Mapping[Any, float]) -> dict[str, float | None]:
    """The figures of a complete cell, None for those that it lacks; nothing of a failed one.

    ``starts`` contains the held-out bits/dim of each model's initialisation.
    """
    evaluation, run = cell.evaluation, cell.run
    test, inverted, latents = evaluation.test, evaluation.round_trip, evaluation.latents
    if cell.status != "complete" or test is None:
        return {}
    best = {name: model.best_holdout_bits_per_dim for name, model in run.models.items()}
    gains = {
        name: starts[*cell.key, name] - trained
        for name, trained in best.items()
        if trained is not None and (*cell.key, name) in starts
    }
    infinite_pixels = [model.infinite_pixels for model in run.models.values() if model.infinite_pixels is not None]
    return {
        "bits_per_dim": test.bits_per_dim.mean,
        "bits_per_dim_median": test.bits_per_dim.median,
        "poster_bits_per_pixel": test.poster_bits_per_pixel,
        "holdout_bits_per_dim": _over_models(run, best),
        "best_epoch": _over_models(run, {name: model.best_epoch for name, model in run.models.items()}),
        "parameters_free": run.parameters.free if run.parameters else None,
        "parameters_stored": run.parameters.stored if run.parameters else None,
        "pixels_exact": inverted.pixels_exact if inverted else None,
        "sample_class_accuracy": evaluation.sample_class_accuracy,
        "classification_accuracy": evaluation.classification_accuracy,
        "infinite_pixels": sum(infinite_pixels) if infinite_pixels else None,
        "holdout_improvement": _over_models(run, gains),
        "pixels_lost": 1e6 * (1 - inverted.pixels_exact) if inverted else None,
        **{f"latent_{name}": getattr(latents, name) if latents else None for name in LATENT},
    }


def _over_models(run: Run, values: Mapping[str, float | None]) -> float | None:
    """The mean over a run's models, weighted by their held-out images; None where a model has no value."""
    known = [value for name in run.models if (value := values.get(name)) is not None]
    weights = [model.holdout_images for model in run.models.values()]
    if len(known) < len(weights) or not any(weights):
        return None
    return float(np.average(known, weights=weights))


def measured_times(measurement: Measurement) -> dict[str, Times]:
    """Times and peak memory under the names of `timings.json`, such as step_ms and memory_training_mib.

    On a GPU the peak is the allocator's, with the source of the figure for the whole process, which is a second entry,
    or the reason why there is none. On a CPU the peak is the process's; a second entry gives its increase over the
    process's memory before the work.
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
            source = memory.gpu_process_source
            times[f"memory_{phase}_mib"] = Times([memory.allocated_peak_mib], "allocator", "MiB", gpu_process=source)
            if memory.gpu_process_mib is not None:
                times[f"memory_{phase}_gpu_process_mib"] = Times([memory.gpu_process_mib], "process", "MiB")
        else:
            increase = memory.process_peak_mib - memory.process_start_mib
            times[f"memory_{phase}_mib"] = Times([memory.process_peak_mib], "process", "MiB")
            times[f"memory_{phase}_above_start_mib"] = Times([increase], "process", "MiB")
    return times


def by_recipe(subjects: Subjects, figures: Callable[[Subject], dict[str, Any]]) -> dict[str, Any]:
    """The figures of each recipe on each data set."""
    return {
        dataset: {recipe: figures(subject) for recipe, subject in recipes.items()}
        for dataset, recipes in subjects.items()
    }


def metrics_of(subject: Subject) -> dict[str, Any]:
    """The headline figures: means over the complete seeds; a recipe without a complete seed has no figures."""
    shown = [name for name in subject.metrics if name not in FOR_CLAIMS]
    return {name: _interval_json("mean", mean_interval(subject.metric(name))) for name in shown}


def timings_of(subject: Subject) -> dict[str, Any]:
    """Medians of time and memory over ``processes``; ``n`` is the number of raw samples of all of them together."""
    timings = {}
    for name, times in subject.times.items():
        median = median_over_processes(times.samples, times.process)
        counts = {"n": len(times.samples), "processes": median.n}
        timings[name] = {**_interval_json("median", median), **counts, "unit": times.unit, "per": times.per}
        timings[name] |= {key: value for key in ADDED if (value := getattr(times, key)) is not None}
    return timings


def _interval_json(name: str, estimate: Estimate) -> dict[str, Any]:
    rounded = estimate.rounded()
    return {name: rounded.value, "ci_low": rounded.low, "ci_high": rounded.high, "n": rounded.n}
