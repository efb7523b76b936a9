"""The tables of `reports/` as DataFrames: their columns, their rows, and how they are written to and read from CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from scipy.stats import norm

from pipeline.core.console import UserError
from pipeline.core.files import write_text
from pipeline.core.record import Environment
from pipeline.evaluation.record import Evaluation, FittedLatents, Latents, Likelihood, Spread, Way
from pipeline.measuring.record import Measurement
from pipeline.results.reading import Cell, Results
from pipeline.results.statistics import mean_interval
from pipeline.training.record import HISTORY

CELL = {"dataset": "string", "recipe": "string"}
SEEDED = CELL | {"seed": "int64"}
ORIGIN = dict.fromkeys(("device", "host", "commit", "time"), "string")
SPREAD = [name for name in Spread.model_fields if name != "worst_percent_share"]
# The quantiles are lists, with a row for each level.
LATENT = [name for name in Latents.model_fields if name not in ("images", "levels", "projection_quantiles")]
# What is told of samples of a class: their number, that of the right ones, and its share.
SAMPLED = {"": "Int64", "_right": "Int64", "_share": "float64"}
# The columns of `results.csv` with evidence for claims.
EVIDENCE = (
    dict.fromkeys(("margin_low", "margin_high", "closed_form_bits_per_dim", "identity_bits_per_dim"), "float64")
    | {"gaussian_base_bits_per_dim": "float64", "gaussian_base_fitted_images": "Int64"}
    | {"class_gaussians_base_bits_per_dim": "float64", "class_gaussians_base_fitted_images": "Int64"}
    | {"class_gaussians_base_shrinkage": "float64"}
    | {"outside_cube_samples": "Int64", "outside_cube_pixels": "float64", "outside_cube_images_inside": "Int64"}
    | {"outside_cube_bits_least": "float64", "outside_cube_bits_most": "float64"}
    | {f"class_samples_{way}{what}": kind for way in get_args(Way) for what, kind in SAMPLED.items()}
    | {"other_cores": "float64"}
)
# The columns of each table with their types.
RESULTS = (
    SEEDED
    | dict.fromkeys(("class", "class_name", "status", "message", "classes"), "string")
    | {"draws": "int64", "images": "Int64"}
    | dict.fromkeys((f"bits_per_dim_{name}" for name in (*SPREAD, "draws_low", "draws_high")), "float64")
    | dict.fromkeys(("worst_percent_share", "poster_bits_per_pixel", "training_seconds"), "float64")
    | EVIDENCE
    | ORIGIN
)
LATENTS = (
    SEEDED
    | dict.fromkeys(("bits_per_dim", "fitted_base_bits_per_dim", *LATENT), "float64")
    | dict.fromkeys((f"fitted_{name}" for name in FittedLatents.model_fields), "float64")
    | dict.fromkeys(("level", "normal_quantile", "projection_quantile"), "float64")
)
TIMINGS = (
    CELL
    | {"stands_for": "string"}
    | {"quantity": "string", "width": "Int64", "batch": "Int64", "per": "string", "unit": "string"}
    | {"process": "Int64", "repetition": "int64", "value": "float64"}
    | ORIGIN
)
CURVES = SEEDED | HISTORY
TABLES = {"results.csv": RESULTS, "latents.csv": LATENTS, "timings.csv": TIMINGS, "curves.csv": CURVES}
# Keys that are no column of a table are left out of it.
Row = dict[str, Any]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV: equal values give equal bytes, and a missing value is an empty field."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: Path) -> pd.DataFrame:
    """Read one of the `TABLES`, as `write_table` has written it.

    Raises:
        UserError: If the file is missing or damaged.
    """
    types = TABLES[path.name]
    try:
        text = _complete_text(path)
        return pd.read_csv(text, dtype=types, keep_default_na=False, na_values=[""], lineterminator="\n")[list(types)]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: write it with python -m pipeline.collect (or dvc repro)") from None
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): write it again with python -m pipeline.collect") from None


def with_none(table: pd.DataFrame) -> pd.DataFrame:
    """The table with None for each missing value."""
    return table.astype(object).where(table.notna(), None)


def _complete_text(path: Path) -> StringIO:
    """The text of a table; a `ValueError` if its last line was cut off."""
    text = path.read_bytes().decode("utf-8")
    if not text.endswith("\n"):
        raise ValueError("its last line is cut off")
    return StringIO(text, newline="")


def results_table(results: Results) -> pd.DataFrame:
    """A row for each cell as a whole (class "all"), and one for each class of a complete or partial cell.

    Only a complete cell has a likelihood as a whole.
    """
    rows: list[Row] = []
    for cell in results.cells:
        evaluation, outcome = cell.evaluation, {"status": cell.status, "message": cell.message}
        shared = {**evaluation.model_dump(exclude=set(EVIDENCE)), **_origin(evaluation.environment), **outcome}
        test = evaluation.test if cell.status == "complete" else None
        per_class = evaluation.per_class if cell.status in ("complete", "partial") else None
        rows.append({**shared, "class": "all", **_likelihood(test), **_evidence(cell), **_class_samples(evaluation)})
        class_names = results.datasets[evaluation.dataset].class_names
        for label, likelihood in sorted((per_class or {}).items(), key=lambda item: int(item[0])):
            of_class = {"class": label, "class_name": class_names[int(label)], **_likelihood(likelihood)}
            rows.append({**shared, **of_class, **_class_samples(evaluation, int(label))})
    return pd.DataFrame(rows, columns=list(RESULTS)).astype(RESULTS)


def _origin(environment: Environment) -> Row:
    commit = environment.commit and environment.commit[:12] + ("+" if environment.dirty else "")
    return environment.model_dump(include=set(ORIGIN)) | {"commit": commit}


def _likelihood(likelihood: Likelihood | None) -> Row:
    if likelihood is None:
        return {}
    spread, by_draw = likelihood.bits_per_dim.model_dump(), likelihood.bits_per_dim_by_draw
    if by_draw:
        draws = mean_interval(by_draw)
        spread |= {"draws_low": draws.low, "draws_high": draws.high}
    bits = {f"bits_per_dim_{name}": value for name, value in spread.items()}
    return {**likelihood.model_dump(), **bits, "worst_percent_share": spread["worst_percent_share"]}


def _evidence(cell: Cell) -> Row:
    """What only a cell as a whole has: how it was trained, and what its likelihood is compared with."""
    run, evaluation = cell.run, cell.evaluation
    margin = run.recipe_params["margin"]
    low, high = margin if isinstance(margin, list) else (margin, margin)
    row = {"training_seconds": run.seconds, "other_cores": run.other_cores, "margin_low": low, "margin_high": high}
    row |= {name: getattr(evaluation, name) for name in ("closed_form_bits_per_dim", "identity_bits_per_dim")}
    row["gaussian_base_bits_per_dim"] = _gaussian_base(evaluation)
    for base, scores in (evaluation.bases or {}).items():
        row |= {f"{base}_base_{name}": value for name, value in scores}
    return row | {f"outside_cube_{name}": value for name, value in evaluation.outside_cube or ()}


def _gaussian_base(evaluation: Evaluation) -> float | None:
    """The test bits/dim with a fitted Gaussian as the base."""
    bases = evaluation.bases or {}
    return bases["gaussian"].bits_per_dim if "gaussian" in bases else evaluation.fitted_base_bits_per_dim


def _class_samples(evaluation: Evaluation, label: int | None = None) -> Row:
    """How many samples of one class, or of all, have a nearest training image of the class asked for."""
    row: Row = {}
    for base, samples in (evaluation.class_samples or {}).items():
        right = samples.right if label is None else [samples.right[label]]
        drawn, name = samples.of_each * len(right), f"class_samples_{base}"
        row |= {name: drawn, f"{name}_right": sum(right), f"{name}_share": sum(right) / drawn}
    return row


def latents_table(results: Results) -> pd.DataFrame:
    """A row for each quantile level of each complete cell's latents; the cell's other figures are repeated."""
    rows = []
    for cell in results.cells:
        evaluation = cell.evaluation
        if cell.status == "complete" and evaluation.test is not None and evaluation.latents is not None:
            fitted = evaluation.fitted_latents.model_dump() if evaluation.fitted_latents else {}
            row = {
                **evaluation.model_dump(),
                "bits_per_dim": evaluation.test.bits_per_dim.mean,
                "fitted_base_bits_per_dim": _gaussian_base(evaluation),
                **evaluation.latents.model_dump(),
                **{f"fitted_{name}": value for name, value in fitted.items()},
            }
            rows.append(row | {"level": row["levels"], "projection_quantile": row["projection_quantiles"]})
    table = pd.DataFrame(rows, columns=list(LATENTS)).explode(["level", "projection_quantile"]).astype(LATENTS)
    return table.assign(normal_quantile=norm.ppf(table["level"])).reset_index(drop=True)


def timings_table(results: Results) -> pd.DataFrame:
    """Every raw sample of time and memory, a row each.

    Its data set is that whose images were used; ``stands_for`` names all those that have the sample's figure.
    """
    rows = []
    for measurement in results.measurements:
        recipe = measurement.recipe
        names = [name for name in results.datasets if results.measured(name, recipe) is measurement]
        cell = {"dataset": measurement.dataset, "recipe": recipe, "stands_for": " ".join(names)}
        rows += [{**cell, **_origin(measurement.environment), **quantity} for quantity in _quantities(measurement)]
    table = pd.DataFrame(rows, columns=list(TIMINGS)).explode(["process", "value"])
    return table.assign(repetition=table.groupby(level=0).cumcount()).astype(TIMINGS).reset_index(drop=True)


def by_dataset(timings: pd.DataFrame) -> pd.DataFrame:
    """The rows of `timings.csv` for each data set they stand for, with that whose images were used as ``measured``."""
    datasets = timings["stands_for"].str.split()
    return timings.rename(columns={"dataset": "measured"}).assign(dataset=datasets).explode("dataset")


def _quantities(measurement: Measurement) -> Iterator[Row]:
    """Each measured quantity, with the list of its samples as ``value`` and their processes as ``process``."""
    for name, timing in (measurement.times or {}).items():
        if timing is not None:
            described = timing.model_dump(include={"unit", "per", "batch", "process"}, exclude_none=True)
            yield {"quantity": name, **_samples(timing.samples), **described}
    for phase, memory in (measurement.memory or {}).items():
        amounts = memory.model_dump(exclude_none=True, exclude={"gpu_process_source"}) if memory else {}
        for field, mib in amounts.items():
            name = f"memory_{phase}_{field.removesuffix('_mib')}"
            yield {"quantity": name, **_samples([mib]), "per": "process", "unit": "MiB"}
    if (determinant := measurement.determinant) is not None:
        by_width = {"diagonal": determinant.diagonal_ms, "slogdet": determinant.slogdet_ms}
        widths = dict.fromkeys(by_width, determinant.widths)
        if determinant.call_ms:
            by_width["call"], widths["call"] = [determinant.call_ms], [1]
        for name, times in by_width.items():
            for width, samples in zip(widths[name], times, strict=True):
                matrix = {"quantity": f"determinant_{name}", "per": "matrix", "unit": "ms"}
                yield {**matrix, "width": width, **_samples(samples)}


def _samples(values: list[float]) -> Row:
    """The samples of one process, whose number is not known."""
    return {"value": values, "process": [None] * len(values)}


def curves_table(cells: Iterable[Cell]) -> pd.DataFrame:
    """The histories of all cells, concatenated."""
    histories = {tuple(cell.key): read_history(cell.history, complete=cell.run.status == "complete") for cell in cells}
    if not histories:
        return pd.DataFrame(columns=list(CURVES)).astype(CURVES)
    table = pd.concat(histories, names=["dataset", "recipe", "seed"]).reset_index([0, 1, 2])
    return table[list(CURVES)].astype(CURVES).reset_index(drop=True)


def read_history(path: Path, *, complete: bool) -> pd.DataFrame:
    """The rows of a `history.csv`.

    A number that is not finite is an error in a complete run; in a failed run, the model's rows end before it.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        history = pd.read_csv(_complete_text(path), dtype=str, keep_default_na=False)[list(HISTORY)]
        text = history.drop(columns="model")
        numbers = text.replace("", "nan").astype("float64")
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}): delete it and run dvc repro again") from None
    not_finite = ((text != "") & ~np.isfinite(numbers)).any(axis=1)
    if complete and not_finite.any():
        raise UserError(f"{path} holds a number that is not finite, though the run is called complete")
    after_failure = not_finite.groupby(history["model"]).cummax()
    return history[["model"]].join(numbers)[~after_failure]
