"""Measures the flows on a GPU and compares them with targets and the poster: python -m benchmarks.gpu --help.

Needs torch, numpy, scipy and safetensors, but no other library of the project, no network and no DVC.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contestants import FLOOR
from benchmarks.gpu_training import likelihoods, measure_memory, train_all
from benchmarks.gpu_works import FIGURES, QUICK, Key, Row, Setting, failure, interleave, make_evaluation, make_step
from pipeline.core.git import git

CLOSING_SECONDS = 5  # reserved within the time limit, for the summary
STARTING_SECONDS = 10  # a process with less time than this is not started


@dataclass(frozen=True)
class Part:
    """Keys, and the function that measures them and yields their rows."""

    keys: tuple[Key, ...]
    rows: Callable[[Setting, Sequence[Key]], Iterator[Row]]


def parts(setting: Setting) -> dict[str, Part]:
    """The parts of a run, the most important first."""
    plain = ("eager", "graph") if setting.cuda else ("eager",)
    fused = ("compiled", "compiled, graph") if setting.cuda else ("compiled",)
    last = ("graph, channels last", "eager, channels last") if setting.cuda else ("eager, channels last",)
    two, three = ("float32", "tf32"), ("float32", "tf32", "bfloat16")

    def keys(figures: Sequence[str], variants: Sequence[str], precisions: Sequence[str]) -> tuple[Key, ...]:
        return tuple(Key(f, v, p) for f in figures for v in variants for p in precisions)

    steps, evaluations = partial(interleave, make=make_step), partial(interleave, make=make_evaluation)
    peaks = keys(["lunet training peak"], plain, ["float32"]) + keys(["realnvp training peak"], plain, ["float32"])
    likelihood_keys = keys(["lunet likelihood", "lunet_learned likelihood"], ["eager"], two)
    paper, learned, baseline = ["lunet step"], ["lunet_learned step"], ["realnvp step"]
    all_parts = {
        "memory": Part(peaks if setting.cuda else (), measure_memory),
        "lunet step": Part(keys([*paper, *learned, f"{FLOOR} step"], plain, two), steps),
        "training": Part(
            keys(["lunet training"], plain[1:], two) + keys(["lunet training"], ["eager"], ["float32"]), train_all
        ),
        "evaluation": Part(keys(["lunet density", "lunet sampling"], ["eager"], two), evaluations),
        "realnvp step": Part(keys(baseline, (*plain, *last), three), steps),
        "lunet step, compiled": Part(keys(paper, fused, two), steps),
        "likelihood": Part(likelihood_keys + keys(["realnvp likelihood"], ["eager"], three), likelihoods),
        "realnvp evaluation": Part(keys(["realnvp density", "realnvp sampling"], ["eager"], three), evaluations),
        "realnvp step, compiled in bfloat16": Part(keys(baseline, fused[-1:], ["bfloat16"]), steps),
        "training, compiled": Part(keys(["lunet training"], fused[-1:], ["tf32"]), train_all),
        "lunet_learned step, compiled": Part(keys(learned, fused, two), steps),
        "realnvp step, compiled in tf32": Part(keys(baseline, fused[-1:], ["tf32"]), steps),
    }
    return {name: part for name, part in all_parts.items() if part.keys}


def write_rows(setting: Setting, name: str, path: Path) -> None:
    """Write the rows of a part to a file, one JSON object per line, each as soon as it is measured."""
    part = parts(setting)[name]
    with path.open("w", encoding="utf-8") as file:
        for row in part.rows(setting, part.keys):
            file.write(json.dumps(row) + "\n")
            file.flush()


def run_part(setting: Setting, name: str, seconds: float) -> list[Row]:
    """The rows that a part's process measures within a number of seconds, and the reason for each key without one."""
    part, reason = parts(setting)[name], None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        if seconds < STARTING_SECONDS:
            reason = "not measured: the time limit"
        else:
            process = multiprocessing.get_context("spawn").Process(target=write_rows, args=(setting, name, path))
            process.start()
            process.join(seconds)
            if process.is_alive():
                process.kill()
                process.join()
                reason = "not measured: the time limit"
            elif process.exitcode:
                reason = f"its process ended with status {process.exitcode}"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for line in lines:
        with suppress(json.JSONDecodeError):  # the last line of a process that was killed
            rows.append(json.loads(line))
    reported = {(row.get("figure"), row.get("variant"), row.get("precision")) for row in rows}
    reported |= {
        (f"{row['model']} likelihood", "eager", row["trained_in"]) for row in rows if row["kind"] == "likelihood"
    }
    return rows + [failure(key, reason or "it gave no sample") for key in part.keys if tuple(key) not in reported]


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Medians and quartiles of all keys, target and poster's figure, in the order of `FIGURES`."""
    samples: dict[Key, list[float]] = {}
    for row in of_kind("sample", rows):
        samples.setdefault(Key(row["figure"], row["variant"], row["precision"]), []).append(row["value"])
    table = []
    for key in sorted(samples, key=lambda key: list(FIGURES).index(key.figure)):
        figure = FIGURES[key.figure]
        quarter, median, three_quarters = np.quantile(samples[key], [0.25, 0.5, 0.75]).tolist()
        table.append({
            **key._asdict(), "n": len(samples[key]), "median": median, "low": quarter, "high": three_quarters,
            "unit": figure.unit, "target": figure.target, "poster": figure.poster,
            "within_target": None if figure.target is None else median <= figure.target,
            "poster_over_median": None if figure.poster is None else figure.poster / median,
        })  # fmt: skip
    return table


def as_text(table: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A table as aligned text, for the console."""

    def cell(value: object) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [list(columns), *([cell(row.get(column)) for column in columns] for row in table)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def write_results(out: Path, rows: Sequence[Row], setting: Setting, environment: Mapping[str, Any]) -> list[Row]:
    """Write `samples.csv` and `summary.json`, and return the summary's table."""
    table = summarise(rows)
    with (out / "samples.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*Key._fields, "round", "value", "unit"], lineterminator="\n")
        writer.writeheader()
        for row in of_kind("sample", rows):
            writer.writerow(row | {"value": f"{row['value']:.6g}", "unit": FIGURES[row["figure"]].unit})
    summary = {
        "environment": environment,
        "setting": asdict(setting)
        | {"data": str(setting.data.name if setting.data else "random; subset for likelihoods")},
        "statistic": "median, and quartiles as low and high, in one process; "
        f"a sample of a step is the mean of {setting.in_a_row} in a row",
        "figures": table,
        "likelihood": of_kind("likelihood", rows),
        "failed": of_kind("failed", rows),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return table


def of_kind(kind: str, rows: Sequence[Row]) -> list[Row]:
    """The rows of a kind (sample, likelihood or failed), without the kind."""
    return [{name: value for name, value in row.items() if name != "kind"} for row in rows if row["kind"] == kind]


def describe(setting: Setting) -> dict[str, Any]:
    """Time, machine and versions."""
    description: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()}-{platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "device": setting.device,
    }
    if setting.cuda:
        properties = torch.cuda.get_device_properties(0)
        description |= {"gpu": properties.name, "multiprocessors": properties.multi_processor_count}
        description["nvidia_smi"] = _output_of(
            "nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv"
        )
    return description | {"commit": git("rev-parse", "HEAD")}


def _output_of(*command: str) -> str | None:
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="On a CUDA GPU, in under ten minutes: LU-Net's and RealNVP's training steps (eager, CUDA graph, "
        "compiled; float32, TF32, bfloat16 networks), densities and samples of many images, training memory, ten "
        "classes of 40 epochs, and what each arithmetic does to likelihoods; beside targets and the poster's figures. "
        "Writes every sample and a summary. What fails is recorded, and so is what the time limit leaves out.",
    )
    parser.add_argument("--data", type=Path, help="a folder that the data stage wrote, such as data/mnist; else random")
    parser.add_argument("--out", type=Path, default=Path("benchmarks-gpu"), help="default: %(default)s")
    parser.add_argument("--time-limit", type=float, default=540, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is for rehearsals")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose figures mean nothing")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="default: all of them")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "no CUDA GPU is here, so there is nothing to measure; --device cpu --quick rehearses the run without one"
        )
    setting = Setting(arguments.device, arguments.data, **(QUICK if arguments.quick else {}))
    chosen = list(parts(setting)) if arguments.parts is None else arguments.parts
    if unknown := [name for name in chosen if name not in parts(setting)]:
        parser.error(f"--parts: there is no {unknown[0]!r}; there are: {', '.join(parts(setting))}")
    if arguments.data is not None and not (arguments.data / "train_images.npy").is_file():
        parser.error(f"--data: {arguments.data} has no train_images.npy; python -m pipeline.data writes such a folder")
    arguments.out.mkdir(parents=True, exist_ok=True)
    environment, rows, table = describe(setting), [], []
    for name in chosen:
        started = time.perf_counter()
        rows += run_part(setting, name, arguments.time_limit - CLOSING_SECONDS - (started - begin))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        table = write_results(arguments.out, rows, setting, environment)
    print(as_text(table, [*Key._fields, "median", "low", "high", "unit", "target", "poster", "poster_over_median"]))
    if likelihood := of_kind("likelihood", rows):
        print(as_text(likelihood, list(likelihood[0])))
    for row in of_kind("failed", rows):
        print(", ".join(row[field] for field in Key._fields) + f": {row['message']}")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
