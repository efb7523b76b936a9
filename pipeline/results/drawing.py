"""Selects the figures of a data set and the rows that each of them shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from pipeline.results import figures
from pipeline.results.image_grid import real_images, write_grid
from pipeline.results.looks import TIMES, Look
from pipeline.results.reading import Grid, Results, read_samples

PHASES = ("training", "sampling")


def draw(
    folder: Path,
    dataset: str,
    looks: Mapping[str, Look],
    tables: Mapping[str, pd.DataFrame],
    contents: Mapping[str, Any],
    floors: Mapping[str, Mapping[str, float]],
) -> None:
    """Draw one data set's figures from its rows of the tables and the JSON files; a figure without data is left out."""
    curves, timings = tables["curves.csv"], tables["timings.csv"]
    metrics, medians = contents["metrics.json"][dataset], contents["timings.json"][dataset]
    references = [row for row in contents["claims.json"]["references"] if row["dataset"] == dataset]
    if len(tables["latents.csv"]):
        figures.latents(folder / f"latents-{dataset}.svg", tables["latents.csv"], looks)
    if len(curves):
        figures.curves(folder / f"curves-{dataset}.svg", curves, looks)
        figures.progress(folder / f"progress-{dataset}.svg", curves, looks)
    bits = {recipe: values["bits_per_dim"] for recipe, values in metrics.items() if "bits_per_dim" in values}
    if bits:
        figures.likelihoods(folder / f"likelihood-{dataset}.svg", bits, references, looks)
    if timings["quantity"].isin(list(TIMES)).any():
        poster = poster_times(contents["claims.json"]["poster"])
        figures.times(folder / f"times-{dataset}.svg", timings, looks, poster)
    names = {phase: f"memory_{phase}_mib" for phase in PHASES}
    peaks = {
        recipe: {phase: quantities[name]["median"] for phase, name in names.items() if name in quantities}
        for recipe, quantities in medians.items()
    }
    peaks = {recipe: by_phase for recipe, by_phase in peaks.items() if by_phase}
    if peaks:
        figures.memory(folder / f"memory-{dataset}.svg", peaks, floors, looks)
    determinant = timings[timings["quantity"].str.startswith("determinant_")]
    if len(determinant):
        recipe = determinant["recipe"].iloc[0]
        rows = determinant[determinant["recipe"] == recipe]
        figures.determinant(folder / f"determinant-{dataset}.svg", rows, looks[recipe])


def memory_floors(dataset: str, results: Results) -> dict[str, dict[str, float]]:
    """The lower bounds on the peak memory in MiB, by recipe and phase, of those recipes that have some."""
    return {
        measured.recipe: measured.floors_mib
        for measured in results.measurements
        if measured.dataset == dataset and measured.floors_mib is not None
    }


def poster_times(poster: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The poster's times by quantity and recipe, in milliseconds corrected by ``factors``."""
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
    write_grid(folder / f"real-{dataset}.png", real_images(data.test_images, data.test_labels, *shape))
    complete = [cell for cell in results.cells if cell.complete and cell.key.dataset == dataset]
    for recipe, cell in {cell.key.recipe: cell for cell in reversed(complete)}.items():
        left_out = {
            "interpolations": not cell.evaluation.interpolations,
            "fitted_base": cell.evaluation.fitted_base_bits_per_dim is None,
        }
        for name in get_args(Grid):
            if not left_out.get(name):
                write_grid(folder / f"{name}-{dataset}-{recipe}.png", read_samples(cell, name))
