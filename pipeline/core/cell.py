"""The cells of the stages, and the command line they share: a data set, a recipe and, for some stages, a seed."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from pipeline.core.console import command_parser
from pipeline.core.params import Params, Seed


def cell_parser(stage: str, description: str, *, out: str, out_help: str, seed: bool) -> argparse.ArgumentParser:
    """A parser with the arguments of one cell.

    Args:
        stage: The module of the stage.
        description: What the stage does, for ``--help``.
        out: The output path in the example.
        out_help: The help text of ``--out``.
        seed: Whether the cell has a seed.
    """
    parser = command_parser(stage, description, f"--dataset mnist --recipe lunet --out {out}")
    parser.add_argument("--dataset", required=True, help="which data set of the parameter file")
    parser.add_argument("--recipe", required=True, help="which recipe of the parameter file")
    if seed:
        parser.add_argument("--seed", type=_seed, default=0, help="which seed of training (default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path, help=out_help)
    parser.add_argument("--data", type=Path, help="the folder of the data set (default: data/<dataset>)")
    return parser


def _seed(text: str) -> int:
    try:
        return TypeAdapter(Seed).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error.errors()[0]['msg'].lower()}") from None


COMMANDS = {
    "train": "python -m pipeline.train --dataset {0} --recipe {1} --seed {2} --out runs/train/{key}",
    "evaluate": "python -m pipeline.evaluate --dataset {0} --recipe {1} --seed {2} --out runs/evaluate/{key}.json",
    "measure": "python -m pipeline.measure --dataset {0} --recipe {1} --out runs/measure/{key}.json",
}


class Key(NamedTuple):
    """The identity of a cell of the grid; measurements have no seed."""

    dataset: str
    recipe: str
    seed: int | None = None

    def __str__(self) -> str:
        return "-".join(str(part) for part in self if part is not None)

    def command(self, stage: str) -> str:
        """The exact command that runs a stage for this cell."""
        return COMMANDS[stage].format(*self, key=self)


def cells_of(params: Params) -> dict[str, list[Key]]:
    """The cells of each stage: all of the grid, and for measurements its recipes on the data sets to measure."""
    grid = params.grid
    trained = [Key(*key) for key in product(grid.datasets, grid.recipes, grid.seeds)]
    measured = [Key(*key) for key in product(params.measure.datasets or grid.datasets, grid.recipes)]
    return {"train": trained, "evaluate": trained, "measure": measured}
