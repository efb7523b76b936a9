"""The number of fitted models behind the kept figures, and the compute that they took, from the records of all runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field, FiniteFloat

from pipeline.core.console import UserError
from pipeline.core.record import Environment, Record, load_record

HOUR = 3600
# The published tables of trainings, a row for each.
TABLES = ("sweeps/*.csv", "benchmarks/precision.csv")
# The records of a run; measurements of older runs have no time.
RECORDS = ("train/*/run.json", "evaluate/*.json", "measure/*.json", "mixture.json")
COLUMNS = {"seconds": "float64", "threads": "int64"}


@dataclass
class Effort:
    """Models fitted, and what training, evaluation, measurements and the mixture took.

    Attributes:
        name: The run or table.
        models: The number of fitted models, those in closed form included: ten for a cell with one model a class.
        cpu_hours: Hours times threads of what ran on a CPU, an upper bound of the time of its cores.
        gpu_hours: Hours of what ran on a GPU.
    """

    name: str
    models: int = 0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0

    def add(self, seconds: float | None, threads: int, device: str) -> None:
        """Add the time of a stage; None, of records without a time, adds nothing."""
        if device == "cuda":
            self.gpu_hours += (seconds or 0) / HOUR
        else:
            self.cpu_hours += (seconds or 0) * threads / HOUR


class Timed(Record):
    """The part of a stage's file that says what it took; ``models`` are those of a training."""

    seconds: FiniteFloat | None = None
    environment: Environment
    models: dict[str, Any] = Field(default_factory=dict)


def read_effort(reports: Path, provenance: Mapping[str, Any]) -> list[Effort]:
    """What this run, each published run, the sweeps and the benchmark of precision took, and the sum, in this order.

    Validations, the benchmarks of times and the measurements of older runs are left out, as their files record no time.
    So is what cannot be read, of which the page warns elsewhere.

    Args:
        reports: The folder with the reports, where published runs are in ``published/``.
        provenance: The content of this run's `provenance.json`.
    """
    parts = [_of_this_run(provenance), *_of_published_runs(reports / "published"), *_of_tables(reports / "published")]
    total = Effort("Together", *(sum(getattr(part, name) for part in parts) for name in list(vars(parts[0]))[1:]))
    return [*parts, total]


def _of_this_run(provenance: Mapping[str, Any]) -> Effort:
    effort, datasets, recipes = Effort("This run"), provenance["datasets"], provenance["params"]["recipes"]
    for cell in provenance["cells"]:
        if cell["stage"] == "train":
            each = recipes[cell["recipe"]]["classes"] == "each"
            effort.models += len(datasets[cell["dataset"]]["class_names"]) if each else 1
    for row in provenance.get("stages", []):
        groups = [group["environment"] for group in provenance["environments"] if row["stage"] in group["cells"]]
        if groups:
            most = max(groups, key=lambda environment: int(environment["threads"]))
            effort.add(row["seconds"], most["threads"], most["device"])
    return effort


def _of_published_runs(folder: Path) -> Iterator[Effort]:
    for runs in sorted(folder.glob("*/runs")):
        effort = Effort(runs.parent.name)
        try:
            for path in (path for pattern in RECORDS for path in sorted(runs.glob(pattern))):
                record = load_record(Timed, path, "python -m pipeline.publish")
                effort.add(record.seconds, record.environment.threads, record.environment.device)
                effort.models += len(record.models) if path.name == "run.json" else 0
        except UserError:
            continue
        yield effort


def _of_tables(folder: Path) -> Iterator[Effort]:
    for path in (path for pattern in TABLES for path in sorted(folder.glob(pattern))):
        try:
            table = pd.read_csv(path, dtype=COLUMNS)
            effort = Effort(path.relative_to(folder).with_suffix("").as_posix(), len(table))
            devices = table["device"] if "device" in table else ["cpu"] * len(table)
            for seconds, threads, device in zip(table["seconds"].fillna(0), table["threads"], devices, strict=True):
                effort.add(seconds, threads, device)
        except (OSError, ValueError, LookupError):
            continue
        yield effort
