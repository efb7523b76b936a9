"""The comparison of RealNVPs trained in float32 and in bfloat16."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from custom_data import small
from small_trainings import recipe_of

from benchmarks.precision import fill, summary
from pipeline.data import describe, write_dataset
from pipeline.presets.merged import preset_values


def test_each_training_is_done_once_and_compared_by_seed(tmp_path: Path) -> None:
    arrays = small(side=8, classes=2)
    write_dataset(tmp_path / "mnist", arrays, describe("mnist", "MNIST", "", "01", arrays, subset=True))
    values: Any = preset_values("smoke")
    training = values["recipes"]["realnvp"]["training"] | {"epochs": 1, "batch_size": 2}
    recipe, path = recipe_of(values, "realnvp", training=training), tmp_path / "precision.csv"
    fill(path, recipe, [tmp_path / "mnist"], [0])
    table = fill(path, recipe, [tmp_path / "mnist"], [0, 1])
    keys = {*table[["clipping", "seed", "precision"]].itertuples(index=False, name=None)}
    assert keys == {*product(("none", "at 10"), (0, 1), ("float32", "bfloat16"))}
    assert len(table) == 8
    assert table["bits_per_dim"].nunique() >= 4
    pd.testing.assert_frame_equal(table, pd.read_csv(path), check_dtype=False)


def test_the_difference_is_paired_by_seed() -> None:
    rows = [
        {"dataset": "mnist", "clipping": "none", "seed": seed, "precision": precision, "bits_per_dim": bits}
        for seed, pair in enumerate([(1.0, 1.1), (2.0, 2.2), (3.0, 3.3)])
        for precision, bits in zip(["float32", "bfloat16"], pair, strict=True)
    ]
    # 0.2 with a standard error of 0.1 / sqrt(3), times Student's 4.303.
    assert summary(pd.DataFrame(rows)) == (
        "mnist, clipping none: 2.0000 bits/dim in float32; bfloat16 changes it by +0.2000 [-0.0484, +0.4484], 3 seeds"
    )
    with pytest.raises(KeyError):
        summary(pd.DataFrame(rows[::2]))


def test_the_readme_has_the_published_figures() -> None:
    root = Path(__file__).parents[2]
    printed = summary(pd.read_csv(root / "reports/published/benchmarks/precision.csv"))
    assert printed in (root / "README.md").read_text(encoding="utf-8")
    assert printed.count("3 seeds") == 4
