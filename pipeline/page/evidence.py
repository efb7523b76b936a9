"""What the page shows of other bases, of margins and of samples by class, from the rows of `results.csv`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from pipeline.results.metrics import interval_json
from pipeline.results.statistics import mean_interval, proportion_interval

# The columns that are shown as means over seeds, by the names that templates use.
BASES = {
    "gaussian": "gaussian_base_bits_per_dim",
    "class_gaussians": "class_gaussians_base_bits_per_dim",
    "shrinkage": "class_gaussians_base_shrinkage",
}
MARGINS = {
    "closed_form": "closed_form_bits_per_dim",
    "identity": "identity_bits_per_dim",
    "pixels": "outside_cube_pixels",
    "least": "outside_cube_bits_least",
    "most": "outside_cube_bits_most",
}
# Where the latents of samples by class come from, in the order of columns.
SAMPLED = ("fitted", "class_gaussians", "standard_normal")
Row = dict[str, Any]


def evidence_of(rows: pd.DataFrame, recipes: Iterable[str]) -> dict[str, Any]:
    """What one data set has of this, over all complete seeds.

    Args:
        rows: The data set's rows of `results.csv`.
        recipes: The recipes in their order.

    Returns:
        ``bases`` and ``margins``, figures by recipe, without the recipes that have none; and ``class_samples``, see
        below.
    """
    complete = rows[rows["status"] == "complete"]
    cells = {recipe: complete[(complete["recipe"] == recipe) & (complete["class"] == "all")] for recipe in recipes}
    bases = {recipe: _means(found, BASES) | {"images": _images(found)} for recipe, found in cells.items()}
    margins = {recipe: _means(found, MARGINS) | {"inside": _inside(found)} for recipe, found in cells.items()}
    return {
        "bases": {recipe: row for recipe, row in bases.items() if row["gaussian"] or row["class_gaussians"]},
        "margins": {recipe: row for recipe, row in margins.items() if row["closed_form"] or row["pixels"]},
        "class_samples": class_samples(complete, recipes),
    }


def class_samples(rows: pd.DataFrame, recipes: Iterable[str]) -> dict[str, Any]:
    """The shares of samples whose nearest training image has the class asked for, each with a Wilson interval of 95 %.

    Returns:
        ``columns``, each with its recipe, the base that latents are drawn from, and the samples of each class; and
        ``rows``, of all classes together and of each class, each with a title and a share, or None, for each column.
    """
    groups = {"All": rows[rows["class"] == "all"]}
    groups |= {str(name): found for (_, name), found in rows.groupby(["class", "class_name"], sort=False)}

    def share(title: str, recipe: str, base: str) -> Row | None:
        return _share(groups[title][groups[title]["recipe"] == recipe], base)

    columns = [
        {"recipe": recipe, "base": base, "of": whole["n"]}
        for recipe in recipes
        for base in SAMPLED
        if (whole := share("All", recipe, base))
    ]
    table = [
        {"title": title, "shares": [share(title, column["recipe"], column["base"]) for column in columns]}
        for title in groups
    ]
    return {"columns": columns, "rows": table}


def margin(value: float | list[float] | None) -> str:
    """The margin of a recipe for readers; with two ends, both."""
    ends = value if isinstance(value, list) else [value]
    return "no logit" if value is None else " and ".join(f"{end:g}".replace("e-0", "e-") for end in ends)


def _means(cells: pd.DataFrame, columns: Mapping[str, str]) -> Row:
    """The mean over seeds of each column in the form of `metrics.json`, with its raw values; None without values."""
    means: Row = dict.fromkeys(columns)
    for name, column in columns.items():
        known = cells.dropna(subset=[column])
        if len(known):
            mean = interval_json("mean", mean_interval(known[column].tolist()))
            means[name] = {**mean, "raw": raw_seeds(known, column)}
    return means


def raw_seeds(cells: pd.DataFrame, column: str) -> Row:
    """The raw values behind a mean over seeds."""
    return {"what": "seed", "values": cells[column].tolist(), "names": cells["seed"].astype(str).tolist()}


def _images(cells: pd.DataFrame) -> int | None:
    """The number of training images that bases were fitted to."""
    images = cells[[f"{base}_base_fitted_images" for base in ("gaussian", "class_gaussians")]].max().max()
    return None if pd.isna(images) else int(images)


def _inside(cells: pd.DataFrame) -> float | None:
    """The share of samples that lie wholly inside the unit cube."""
    inside, samples = (int(cells[f"outside_cube_{name}"].sum()) for name in ("images_inside", "samples"))
    return inside / samples if samples else None


def _share(rows: pd.DataFrame, base: str) -> Row | None:
    """The share of samples that are right, with its interval and their number."""
    samples, right = (int(rows[f"class_samples_{base}{name}"].sum()) for name in ("", "_right"))
    if not samples:
        return None
    return asdict(proportion_interval(right, samples))
