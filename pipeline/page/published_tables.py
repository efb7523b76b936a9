"""The published tables in `reports/published/`: those of `benchmarks/` and of `pipeline.sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.results.statistics import log_log_slope
from pipeline.results.tables import with_none

COST = {"axis": "string", "value": "int64", "work": "string", "ms": "float64"}
TABLE = {
    **dict.fromkeys(("work", "model"), "string"),
    **dict.fromkeys(("batch", "n"), "int64"),
    **dict.fromkeys(("ms", "ratio"), "float64"),
}
WORKS = {"step": "training step", "log_prob": "density", "sample": "sampling"}
SWEEP = {
    **dict.fromkeys(("variant", "dataset", "status", "commit"), "string"),
    "seed": "int64",
    **dict.fromkeys(("holdout_bits_per_dim", "train_bits_per_dim", "epochs", "seconds"), "float64"),
}
# The sweeps of `sweeps.yaml` in the order of the page.
SWEEPS = ("ablation", "lunet", "margin", "realnvp")
ENVIRONMENT = ("processor", "threads", "torch", "time", "note")
WIDE = 1024  # features; below this number, constant costs bend the slope


def read_benchmark(folder: Path) -> dict[str, Any] | None:
    """The published benchmark for the page: figures, slopes, and the table of all libraries.

    None if there is no benchmark; only ``trouble``, a sentence, if it cannot be read.
    """
    if not folder.is_dir():
        return None
    try:
        times = pd.read_csv(folder / "cost_times.csv", usecols=list(COST), dtype=COST)
        wide = times[(times["axis"] == "features") & (times["value"] >= WIDE)]
        medians = wide.groupby(["work", "value"])["ms"].median()
        # Ratios are to the first model of each work and batch.
        rivals = pd.read_csv(folder / "times_table.csv", usecols=list(TABLE), dtype=TABLE).replace({"work": WORKS})
        return {
            "environment": read_environment(folder / "cost_environment.csv"),
            "figures": [path.stem.removeprefix("cost-") for path in folder.glob("cost-*.svg")],
            "slopes": {name: log_log_slope([*medians[work].index], [*medians[work]]) for work, name in WORKS.items()},
            "rivals_environment": read_environment(folder / "times_environment.csv"),
            "rivals": rivals.to_dict("records"),
        }
    except (OSError, ValueError, LookupError) as error:
        return {"trouble": f"The benchmark in {folder.name} cannot be shown ({error})."}


def read_environment(path: Path) -> dict[str, str]:
    """The machine, the software and the time of a benchmark."""
    values = pd.read_csv(path, names=["name", "value"], index_col="name", dtype=str, keep_default_na=False)["value"]
    return {name: values[name] for name in ENVIRONMENT}


def read_sweeps(folder: Path) -> list[dict[str, Any]]:
    """The tables of all published sweeps; a sweep that cannot be read has ``trouble``, a sentence, instead of rows."""
    sweeps: list[dict[str, Any]] = []
    for name in SWEEPS:
        if (path := folder / f"{name}.csv").is_file():
            sweeps.append({"name": name})
            try:
                table = pd.read_csv(path, usecols=list(SWEEP), dtype=SWEEP)
                table["commit"] = table["commit"].str[:8]
                sweeps[-1]["rows"] = with_none(table).to_dict("records")
            except (OSError, ValueError) as error:
                sweeps[-1]["trouble"] = f"The sweep {name} cannot be shown ({error})."
    return sweeps
