"""The metrics of each cell, and the headline files `metrics.json` and `timings.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation.record import ClassSamples
from pipeline.measuring.record import Measurement
from pipeline.results.reading import Cell, Results
from pipeline.results.statistics import Estimate, mean_interval, median_over_processes
from pipeline.results.subjects import Curve, Subject, Subjects, Times
from pipeline.results.tables import LATENT
from pipeline.training.record import Run

# What `timings.json` has of a figure beside its median, where it is known.
ADDED = ("batch", "images", "of", "precision", "gpu_process")
# The metrics that only claims use; `metrics.json` has all others, in the order of `cell_metrics`.
FOR_CLAIMS = (
    "gain_over_gaussian", "gain_over_identity", "gain_over_start", "margin", "outside_least", "outside_most",
    "standard_normal_share", "pixels_lost", *(f"latent_{name}" for name in LATENT),
)  # fmt: skip


def subjects_of(results: Results, curves: pd.DataFrame) -> dict[str, dict[str, Subject]]:
    """The figures by data set and recipe, in the form that claims and metrics use."""
    models = curves_of(curves)
    subjects: dict[str, dict[str, Subject]] = {dataset: {} for dataset in results.datasets}
    for dataset, recipe in product(results.datasets, results.params.grid.recipes):
        cells = [cell for cell in results.cells if cell.key[:2] == (dataset, recipe)]
        complete = {cell.run.seed: cell for cell in cells if cell.status == "complete" and cell.evaluation.test}
        measured = results.measured(dataset, recipe)
        environments = [part.environment for cell in cells for part in (cell.run, cell.evaluation)]
        environments += [measured.environment] if measured else []
        by_seed = {
            seed: {**cell_metrics(cell), "gain_over_start": _gain_over_start(cell.run, models.get(tuple(cell.key), {}))}
            for seed, cell in complete.items()
        }
        metrics = {
            name: {seed: value for seed, values in by_seed.items() if (value := values[name]) is not None}
            for name in next(iter(by_seed.values()), ())
        }
        classes = results.params.recipes[recipe].classes
        samples = {
            base: {seed: found[base] for seed, cell in complete.items() if base in (found := _class_samples(cell))}
            for base in ("standard_normal", "fitted")
        }
        subjects[dataset][recipe] = Subject(
            metrics={name: values for name, values in metrics.items() if values},
            times=measured_times(measured) if measured else {},
            determinant=next((found.determinant for found in results.measurements if found.determinant), None),
            classes=classes,
            devices=frozenset(environment.device for environment in environments),
            machines=frozenset([measured.environment.host] if measured else []),
            trouble="; ".join(troubles_of(results, dataset, recipe)) or None,
            by_class=by_class_of(complete) if classes == "each" else {},
            curves={seed: models[key] for seed, cell in complete.items() if (key := tuple(cell.key)) in models},
            class_samples={base: found for base, found in samples.items() if found},
        )
    return subjects


def by_class_of(cells: Mapping[int, Cell]) -> dict[str, dict[int, dict[str, float]]]:
    """The metrics of complete cells that are known by class, by seed; those with a model for each class."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for seed, cell in cells.items():
        evaluation = cell.evaluation
        bits = {label: likelihood.bits_per_dim.mean for label, likelihood in (evaluation.per_class or {}).items()}
        exact = evaluation.round_trip.pixels_exact_by_class if evaluation.round_trip else None
        lost = {label: 1e6 * (1 - share) for label, share in (exact or {}).items()}
        figures = {"bits_per_dim": bits, "pixels_lost": lost}
        rivals = {"gaussian": evaluation.closed_form_by_class, "identity": evaluation.identity_by_class}
        for name, rival in rivals.items():
            figures[f"gain_over_{name}"] = {label: value - bits[label] for label, value in (rival or {}).items()}
        for name, values in figures.items():
            if values:
                found.setdefault(name, {})[seed] = values
    return found


def curves_of(curves: pd.DataFrame) -> dict[tuple[Any, ...], dict[str, Curve]]:
    """The validations of each trained model, by cell and by the model's name in it."""
    models: dict[tuple[Any, ...], dict[str, Curve]] = {}
    validations = curves.dropna(subset=["holdout_bits_per_dim"])
    for (*key, model), rows in validations.groupby(["dataset", "recipe", "seed", "model"], sort=False):
        models.setdefault(tuple(key), {})[str(model)] = Curve(
            rows["epoch"].tolist(), rows["holdout_bits_per_dim"].tolist()
        )
    return models


def _class_samples(cell: Cell) -> Mapping[str, ClassSamples]:
    return {str(base): found for base, found in (cell.evaluation.class_samples or {}).items()}


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


def cell_metrics(cell: Cell) -> dict[str, float | None]:
    """The figures of a complete cell, None for those that it lacks; nothing of a failed one."""
    evaluation, run = cell.evaluation, cell.run
    test, inverted, latents = evaluation.test, evaluation.round_trip, evaluation.latents
    if cell.status != "complete" or test is None:
        return {}
    bits, outside, bases = test.bits_per_dim.mean, evaluation.outside_cube, evaluation.bases or {}
    infinite_pixels = [model.infinite_pixels for model in run.models.values() if model.infinite_pixels is not None]
    shares = {
        base: sum(found.right) / (found.of_each * len(found.right)) for base, found in _class_samples(cell).items()
    }
    margin = run.recipe_params["margin"]
    return {
        "bits_per_dim": bits,
        "bits_per_dim_median": test.bits_per_dim.median,
        "bits_per_dim_gaussian_base": bases["gaussian"].bits_per_dim if "gaussian" in bases else None,
        "bits_per_dim_class_base": bases["class_gaussians"].bits_per_dim if "class_gaussians" in bases else None,
        "poster_bits_per_pixel": test.poster_bits_per_pixel,
        "holdout_bits_per_dim": _over_models(
            run, {name: model.best_holdout_bits_per_dim for name, model in run.models.items()}
        ),
        "best_epoch": _over_models(run, {name: model.best_epoch for name, model in run.models.items()}),
        "parameters_free": run.parameters.free if run.parameters else None,
        "parameters_stored": run.parameters.stored if run.parameters else None,
        "pixels_exact": inverted.pixels_exact if inverted else None,
        "sample_class_share": shares.get("fitted"),
        "sample_class_accuracy": evaluation.sample_class_accuracy,
        "classification_accuracy": evaluation.classification_accuracy,
        "infinite_pixels": sum(infinite_pixels) if infinite_pixels else None,
        "gain_over_gaussian": _minus(evaluation.closed_form_bits_per_dim, bits),
        "gain_over_identity": _minus(evaluation.identity_bits_per_dim, bits),
        "margin": margin if isinstance(margin, float) else None,
        "outside_least": outside.bits_least if outside else None,
        "outside_most": outside.bits_most if outside else None,
        "standard_normal_share": shares.get("standard_normal"),
        "pixels_lost": 1e6 * (1 - inverted.pixels_exact) if inverted else None,
        **{f"latent_{name}": getattr(latents, name) if latents else None for name in LATENT},
    }


def _gain_over_start(run: Run, curves: Mapping[str, Curve]) -> float | None:
    """How far the best held-out bits/dim are below the start's; None where a start was not validated."""
    gains = {
        name: curve.bits_per_dim[0] - min(curve.bits_per_dim) for name, curve in curves.items() if curve.epochs[0] == 0
    }
    return _over_models(run, gains)


def _minus(value: float | None, bits: float) -> float | None:
    return None if value is None else value - bits


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
    return {name: interval_json("mean", mean_interval([*subject.metric(name).values()])) for name in shown}


def timings_of(subject: Subject) -> dict[str, Any]:
    """Medians of time and memory over ``processes``; ``n`` is the number of raw samples of all of them together."""
    timings = {}
    for name, times in subject.times.items():
        median = median_over_processes(times.samples, times.process)
        counts = {"n": len(times.samples), "processes": median.n}
        timings[name] = {**interval_json("median", median), **counts, "unit": times.unit, "per": times.per}
        timings[name] |= {key: value for key in ADDED if (value := getattr(times, key)) is not None}
    return timings


def interval_json(name: str, estimate: Estimate) -> dict[str, Any]:
    """An estimate under a name, with its interval and number of samples, each rounded."""
    rounded = estimate.rounded()
    return {name: rounded.value, "ci_low": rounded.low, "ci_high": rounded.high, "n": rounded.n}
