"""The tables of `reports/` as DataFrames: their columns, their rows, and their way to CSV and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from pipeline.core.console import UserError
from pipeline.core.files import write_text
from pipeline.results.reading import Cell, Results
from pipeline.results.records import Environment, FittedLatents, Likelihood, Measurement
from pipeline.results.statistics import mean_interval

RESULTS = {
    **dict.fromkeys(("dataset", "recipe"), "string"),
    "seed": "int64",
    **dict.fromkeys(("class", "class_name", "status", "message", "classes"), "string"),
    "draws": "int64",
    "images": "Int64",
    **dict.fromkeys((f"bits_per_dim_{name}" for name in ("mean", "median", "std", "min", "max")), "float64"),
    **dict.fromkeys(("bits_per_dim_draws_low", "bits_per_dim_draws_high"), "float64"),
    **dict.fromkeys(("worst_percent_share", "poster_bits_per_pixel", "training_seconds"), "float64"),
    **dict.fromkeys(("device", "host", "commit", "time"), "string"),
}
LATENTS = {
    **dict.fromkeys(("dataset", "recipe"), "string"),
    "seed": "int64",
    **dict.fromkeys(("bits_per_dim", "fitted_base_bits_per_dim"), "float64"),
    **dict.fromkeys(("mean", "variance", "variance_min", "variance_max"), "float64"),
    **dict.fromkeys(("projection_distance", "projection_distance_max", "radius", "radius_distance"), "float64"),
    **dict.fromkeys(("critical_distance", "critical_distance_max"), "float64"),
    **dict.fromkeys((f"fitted_{name}" for name in FittedLatents.model_fields), "float64"),
    **dict.fromkeys(("level", "normal_quantile", "projection_quantile"), "float64"),
}
TIMINGS = {
    **dict.fromkeys(("dataset", "recipe", "quantity"), "string"),
    **dict.fromkeys(("width", "batch"), "Int64"),
    **dict.fromkeys(("per", "unit"), "string"),
    "repetition": "int64",
    "value": "float64",
    **dict.fromkeys(("device", "host", "commit", "time"), "string"),
}
CURVES = {
    **dict.fromkeys(("dataset", "recipe"), "string"),
    "seed": "int64",
    "model": "string",
    "step": "int64",
    **dict.fromkeys(("epoch", "seconds", "learning_rate", "train_bits_per_dim", "holdout_bits_per_dim"), "float64"),
    **dict.fromkeys(("smallest_diagonal", "condition", "latent_error", "pixels_exact"), "float64"),
}
Row = dict[str, Any]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV: the same bytes for the same values, a missing one an empty field."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read what `write_table` has written.

    Args:
        path: The CSV file.
        columns: The type of each column: `RESULTS`, `TIMINGS` or `CURVES`.

    Raises:
        UserError: If the file is missing or damaged.
    """
    try:
        text = _whole(path)
        return pd.read_csv(
            text, usecols=list(columns), dtype=columns, keep_default_na=False, na_values=[""], lineterminator="\n"
        )
    except FileNotFoundError:
        raise UserError(f"{path} is missing: write it with python -m pipeline.collect (or dvc repro)") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): write it again with python -m pipeline.collect") from None


def _whole(path: Path) -> StringIO:
    """The text of a table; a `ValueError` if its last line was cut off."""
    text = path.read_bytes().decode("utf-8")
    if not text.endswith("\n"):
        raise ValueError("its last line is cut off")
    return StringIO(text, newline="")


def results_table(results: Results) -> pd.DataFrame:
    """A row for each cell as a whole (class "all"), and one for each class of a complete cell."""
    rows: list[Row] = []
    for cell in results.cells:
        found = cell.evaluation
        shared = {
            **cell.key._asdict(),
            "status": cell.status,
            "message": cell.message,
            "classes": found.classes,
            "draws": found.draws,
            **_where(found.environment),
        }
        test, per_class = (found.test, found.per_class or {}) if cell.complete else (None, {})
        rows.append({**shared, "class": "all", "training_seconds": cell.run.seconds, **_likelihood(test)})
        names = results.datasets[found.dataset].class_names
        for label, own in sorted(per_class.items(), key=lambda item: int(item[0])):
            rows.append({**shared, "class": label, "class_name": names[int(label)], **_likelihood(own)})
    return pd.DataFrame(rows, columns=list(RESULTS)).astype(RESULTS)


def _where(environment: Environment) -> Row:
    commit = environment.commit and environment.commit[:12] + ("+" if environment.dirty else "")
    return {"device": environment.device, "host": environment.host, "commit": commit, "time": environment.time}


def _likelihood(found: Likelihood | None) -> Row:
    if found is None:
        return {}
    spread = found.bits_per_dim.model_dump()
    draws = mean_interval(found.bits_per_dim_by_draw) if found.bits_per_dim_by_draw else None
    return {
        "images": found.images,
        "bits_per_dim_draws_low": draws and draws.low,
        "bits_per_dim_draws_high": draws and draws.high,
        "worst_percent_share": spread.pop("worst_percent_share"),
        "poster_bits_per_pixel": found.poster_bits_per_pixel,
        **{f"bits_per_dim_{name}": value for name, value in spread.items()},
    }


def latents_table(results: Results) -> pd.DataFrame:
    """A row for each level of the quantiles of each complete cell's latents, its other figures repeated."""
    rows = []
    for cell in results.cells:
        found = cell.evaluation
        if cell.complete and found.test is not None and found.latents is not None:
            fitted = found.fitted_latents.model_dump() if found.fitted_latents else {}
            row = {
                **cell.key._asdict(),
                **{f"fitted_{name}": value for name, value in fitted.items()},
                "bits_per_dim": found.test.bits_per_dim.mean,
                "fitted_base_bits_per_dim": found.fitted_base_bits_per_dim,
                **found.latents.model_dump(exclude={"levels", "projection_quantiles"}),
            }
            rows += [
                {**row, "level": level, "normal_quantile": norm.ppf(level), "projection_quantile": quantile}
                for level, quantile in zip(found.latents.levels, found.latents.projection_quantiles, strict=True)
            ]
    return pd.DataFrame(rows, columns=list(LATENTS)).astype(LATENTS)


def timings_table(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """Every raw sample of time and memory, a row each."""
    rows = [
        {"dataset": found.dataset, "recipe": found.recipe, **_where(found.environment), **quantity}
        for found in measurements
        for quantity in _quantities(found)
    ]
    table = pd.DataFrame(rows, columns=list(TIMINGS)).explode("value")
    return table.assign(repetition=table.groupby(level=0).cumcount()).astype(TIMINGS).reset_index(drop=True)


def _quantities(found: Measurement) -> Iterator[Row]:
    """What was measured, with all its samples as one ``value``."""
    for name, timing in (found.times or {}).items():
        if timing is not None:
            yield {"quantity": name, "value": timing.samples, **timing.model_dump(include={"unit", "per", "batch"})}
    for phase, memory in (found.memory or {}).items():
        for field, mib in memory.model_dump(exclude_none=True).items() if memory else ():
            name = f"memory_{phase}_{field.removesuffix('_mib')}"
            yield {"quantity": name, "value": [mib], "per": "process", "unit": "MiB"}
    if found.determinant is not None:
        for name in ("diagonal", "slogdet"):
            about = {"quantity": f"determinant_{name}", "per": "matrix", "unit": "ms"}
            for width, samples in zip(found.determinant.widths, getattr(found.determinant, f"{name}_ms"), strict=True):
                yield {**about, "width": width, "value": samples}


def curves_table(cells: Iterable[Cell]) -> pd.DataFrame:
    """The histories of all cells, one after the other."""
    histories = {tuple(cell.key): read_history(cell.history, complete=cell.run.status == "complete") for cell in cells}
    if not histories:
        return pd.DataFrame(columns=list(CURVES)).astype(CURVES)
    table = pd.concat(histories, names=["dataset", "recipe", "seed"]).reset_index([0, 1, 2])
    return table[list(CURVES)].astype(CURVES).reset_index(drop=True)


def read_history(path: Path, *, complete: bool) -> pd.DataFrame:
    """The rows of a `history.csv`.

    A number that is not finite is an error in a run that is complete; in a failed one the model's rows end before it.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        history = pd.read_csv(_whole(path), dtype=str, keep_default_na=False)[list(CURVES)[3:]]
        text = history.drop(columns="model")
        numbers = text.replace("", "nan").astype("float64")
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}): delete it and run dvc repro again") from None
    broken = ((text != "") & ~np.isfinite(numbers)).any(axis=1)
    if complete and broken.any():
        raise UserError(f"{path} holds a number that is not finite, though the run is called complete")
    ended = broken.groupby(history["model"]).cummax()
    return history[["model"]].join(numbers)[~ended]
