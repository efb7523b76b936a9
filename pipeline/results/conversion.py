"""The poster's likelihoods and our own printed figures, converted to bits per pixel of the 8-bit image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.dataset import Dataset
from pipeline.core.params import Recipe
from pipeline.evaluation import released_bits
from pipeline.evaluation.record import Likelihood
from pipeline.results.claims import PosterFile
from pipeline.results.reading import Results
from pipeline.results.statistics import round_significant


def conversion_of(results: Results, printed_figures: PosterFile) -> dict[str, Any]:
    """The poster's likelihoods and our own printed figures, converted to bits per pixel on each data set."""
    printed = next(row for row in printed_figures.poster if row.quantity == "nll")
    codes: dict[released_bits.Code, float] = {"lunet": printed.lunet, "realnvp": printed.realnvp}
    poster = [
        {"title": dataset.title, "code": code, "printed": value}
        | {key: round_significant(bits) for key, bits in released_bits.poster_in_bits(dataset, code, value).items()}
        for dataset in results.datasets.values()
        if dataset.in_paper
        for code, value in codes.items()
    ]
    checks = []
    for cell in results.cells:
        recipe, dataset = results.params.recipe(cell.key.recipe), results.datasets[cell.key.dataset]
        test, per_class = cell.evaluation.test, cell.evaluation.per_class
        if test is None or per_class is None or test.poster_bits_per_pixel is None:
            continue
        if (value := converted(per_class, recipe, dataset)) is not None:
            bits = {"printed": test.poster_bits_per_pixel, "converted": value, "honest": test.bits_per_dim.mean}
            rounded = {name: round_significant(value) for name, value in bits.items()}
            checks.append({"title": dataset.title, **cell.key._asdict(), **rounded})
    return {"poster": poster, "checks": checks}


def converted(per_class: Mapping[str, Likelihood], recipe: Recipe, dataset: Dataset) -> float | None:
    """A printed figure converted to bits per pixel with the data's Jacobian alone, to check against the honest one.

    ``None`` if a class has no printed figure.
    """
    code = released_bits.released_code(recipe)
    margin = recipe.margin if isinstance(recipe.margin, tuple) else (recipe.margin, recipe.margin)
    total = 0.0
    for label, likelihood in per_class.items():
        if likelihood.poster_bits_per_pixel is None:
            return None
        factor = released_bits.batch_factor(likelihood.images if recipe.classes == "each" else len(dataset.test_images))
        logit = released_bits.logit_bits(dataset.test_images[dataset.test_labels == int(label)], margin)
        bits = released_bits.to_bits_per_dim(likelihood.poster_bits_per_pixel, code, logit, factor)
        total += likelihood.images * bits
    return total / len(dataset.test_images)
