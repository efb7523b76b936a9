"""The published tables in `reports/published/`: those of `benchmarks/` and of `pipeline.sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.results.statistics import log_log_slope

COST = {"axis": "string", "value": "int64", "work": "string", "ms": "float64"}
TABLE = {
    **dict.fromkeys(("work", "model"), "string"),
    **dict.fromkeys(("batch", "n"), "int64"),
    **dict.fromkeys(("ms", "ms_low", "ms_high", "ratio", "ratio_low", "ratio_high"), "float64"),
}
WORKS = {"step": "training step", "log_prob": "density", "sample": "sampling"}
# The caption of each figure of `benchmarks.cost`.
FIGURES = {
    "features": "Time against the number D of features",
    "batch": "Time against the batch",
    "layers": "Time against the number of layers",
    "memory-batch": "Memory of training against the batch",
    "memory-layers": "Memory of training against the number of layers",
}
SWEEP = {
    **dict.fromkeys(("variant", "dataset", "status", "commit"), "string"),
    "seed": "int64",
    **dict.fromkeys(("holdout_bits_per_dim", "train_bits_per_dim", "epochs", "seconds"), "float64"),
}
# The sweeps of `sweeps.yaml` in the order of the page.
SWEEPS = {
    "ablation": "What each step from the released training to ours buys; each variant keeps the changes before it.",
    "lunet": "How the paper’s architecture is best trained in a given number of passes.",
    "margin": "What the logit keeps clear of 0 and 1, at both ends of the range.",
    "realnvp": "Where RealNVP’s small form is best enlarged.",
}
ENVIRONMENT = ("processor", "threads", "torch", "time", "note")
WIDE = 1024  # features; below this number, constant costs bend the slope


def read_benchmark(folder: Path) -> dict[str, Any] | None:
    """The published benchmark for the page: figures, slopes, and the table of all libraries.

    None if there is no benchmark; only ``trouble``, a sentence, if it cannot be read.
    """
    if not folder.is_dir():
        return None
    try:
        return _read(folder)
    except (OSError, ValueError, LookupError) as error:
        return {"trouble": f"The benchmark in {folder.name} cannot be shown ({error})."}


def _read(folder: Path) -> dict[str, Any]:
    times = pd.read_csv(folder / "cost_times.csv", usecols=list(COST), dtype=COST)
    wide = times[(times["axis"] == "features") & (times["value"] >= WIDE)]
    medians = wide.groupby(["work", "value"])["ms"].median()
    rivals = pd.read_csv(folder / "times_table.csv", usecols=list(TABLE), dtype=TABLE).to_dict("records")
    return {
        "environment": read_environment(folder / "cost_environment.csv"),
        "figures": {
            f"cost-{name}.svg": caption for name, caption in FIGURES.items() if (folder / f"cost-{name}.svg").is_file()
        },
        "slopes": {
            label: log_log_slope(medians[work].index.tolist(), medians[work].tolist()) for work, label in WORKS.items()
        },
        "rivals_environment": read_environment(folder / "times_environment.csv"),
        # Ratios are to the first model of each work and batch.
        "rivals": [
            {
                **row,
                "work": WORKS.get(row["work"], row["work"]),
                **{
                    name: {"median": row[name], "ci_low": row[f"{name}_low"], "ci_high": row[f"{name}_high"]}
                    for name in ("ms", "ratio")
                },
            }
            for row in rivals
        ],
    }


def read_environment(path: Path) -> dict[str, str]:
    """The machine, the software and the time of a benchmark."""
    values = pd.read_csv(path, names=["name", "value"], index_col="name", dtype=str, keep_default_na=False)["value"]
    return {name: values[name] for name in ENVIRONMENT}


def read_sweeps(folder: Path) -> list[dict[str, Any]]:
    """The tables of all published sweeps; a sweep that cannot be read has ``trouble``, a sentence, instead of rows."""
    paths = [path for name in SWEEPS if (path := folder / f"{name}.csv").is_file()]
    return [{"name": path.stem, "what": SWEEPS[path.stem], **_sweep(path)} for path in paths]


def _sweep(path: Path) -> dict[str, Any]:
    try:
        table = pd.read_csv(path, usecols=list(SWEEP), dtype=SWEEP)
    except (OSError, ValueError) as error:
        return {"trouble": f"The sweep {path.stem} cannot be shown ({error})."}
    table["commit"] = table["commit"].str[:8]
    return {"rows": table.astype(object).where(table.notna(), None).to_dict("records")}
