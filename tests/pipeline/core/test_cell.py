"""The name of a cell and its command line."""

from __future__ import annotations

import pytest

from pipeline.core.cell import Key, cell_parser


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
