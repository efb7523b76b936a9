"""Tests of the recipes' colours: sufficient contrast, and independence of the other recipes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.results.looks import KNOWN, looks


def luminance(colour: str) -> float:
    """The relative luminance of WCAG."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("recipe", KNOWN)
def test_colours_stand_out_on_light_and_dark(recipe: str) -> None:
    recipe_luminance = luminance(KNOWN[recipe].colour)
    assert (luminance("#fcfbf8") + 0.05) / (recipe_luminance + 0.05) >= 3
    assert (recipe_luminance + 0.05) / (luminance("#15171a") + 0.05) >= 3


def test_looks_do_not_depend_on_the_other_recipes() -> None:
    assert looks(["realnvp", "mine"])["realnvp"] == looks(["lunet", "realnvp"])["realnvp"]
    by_recipe = looks(["lunet", "mine", "yours"])
    assert by_recipe["mine"].label == "mine"
    assert len({look.colour for look in by_recipe.values()}) == 3
