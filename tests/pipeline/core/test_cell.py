"""The name of a cell and its command line."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.core.cell import Key, cell_parser, cells_of
from pipeline.core.params import validate


def test_a_key_is_a_file_s_name() -> None:
    assert (str(Key("mnist", "lunet", 0)), str(Key("mnist", "lunet"))) == ("mnist-lunet-0", "mnist-lunet")


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", str(2**32)])
def test_a_seed_is_a_whole_number_that_generators_take(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = cell_parser("train", "Train.", out="x", out_help="the folder", seed=True)
    names = ["--dataset", "mnist", "--recipe", "lunet", "--out", "x"]
    assert parser.parse_args([*names, "--seed", str(2**32 - 1)]).seed == 2**32 - 1
    with pytest.raises(SystemExit):
        parser.parse_args([*names, "--seed", seed])
    assert f"--seed: {seed!r}:" in capsys.readouterr().err


@pytest.mark.parametrize(("datasets", "measured"), [(["fashion_mnist"], ["fashion_mnist"]), (None, ["mnist"])])
def test_the_cells_are_the_grid_and_its_recipes_on_the_data_sets_to_measure(
    smoke_values: Any, datasets: list[str] | None, measured: list[str]
) -> None:
    smoke_values["grid"] = {"datasets": ["mnist"], "recipes": ["lunet", "gaussian"], "seeds": [3, 1]}
    if datasets is None:
        del smoke_values["measure"]["datasets"]
    else:
        smoke_values["measure"]["datasets"] = datasets
    cells = cells_of(validate(smoke_values, "params.yaml"))
    trained = [Key("mnist", recipe, seed) for recipe in ("lunet", "gaussian") for seed in (3, 1)]
    assert cells == {
        "train": trained,
        "evaluate": trained,
        "measure": [Key(dataset, recipe) for dataset in measured for recipe in ("lunet", "gaussian")],
    }
