"""The looks of the recipes and the names of the times, free of matplotlib so that the report can use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Annotated, Any

from pydantic import Field


@dataclass(frozen=True)
class Look:
    """A recipe's name for readers, its colour and its marker, the same in every figure and table."""

    label: str
    colour: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
    marker: str = "*"

    @property
    def line(self) -> dict[str, Any]:
        """The arguments of matplotlib for a labelled line."""
        return {"color": self.colour, "marker": self.marker, "label": self.label}


# Colours that colour-blind readers can distinguish, with a contrast of at least 3 on white and on near-black.
KNOWN = {
    "lunet": Look("LU-Net", "#1f77c9", "o"),
    "realnvp": Look("RealNVP", "#d55e00", "s"),
    "lunet_learned": Look("LU-Net, learned activations", "#8a63d2", "v"),
    "lunet_released": Look("LU-Net, as released", "#3f8f9b", "^"),
    "realnvp_released": Look("RealNVP, as released", "#a8772a", "P"),
    "gaussian": Look("Gaussian", "#12946d", "D"),
    "histogram": Look("Pixel histograms", "#c2649a", "X"),
}
FALLBACK_COLOURS = ("#7d8590", "#b0653a", "#5f8dd3", "#859900")


def looks(recipes: Sequence[str]) -> dict[str, Look]:
    """The look of each recipe; recipes that are not in `KNOWN` take the colours of `FALLBACK_COLOURS` in turn."""
    colours = cycle(FALLBACK_COLOURS)
    return {recipe: KNOWN.get(recipe) or Look(recipe, next(colours)) for recipe in recipes}


# The colour of all marks that belong to no recipe; the page replaces it with that of its text.
INK = "#010203"

# The measured times that are shown, with their names for readers.
TIMES = {
    "step": "training step",
    "optimizer_step": "optimizer’s update alone",
    "density_small": "density, small batch, per image",
    "density_large": "density, large batch, per image",
    "sampling_small": "sampling, small batch, per image",
    "sampling_large": "sampling, large batch, per image",
}
