"""Scores trained runs with the test noise of several seeds: python -m benchmarks.noise --help."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline.core.console import exit_with, say
from pipeline.core.dataset import Dataset, load_dataset
from pipeline.core.environment import describe_environment, keep_freed_memory
from pipeline.core.precision import arithmetic
from pipeline.core.streams import generator
from pipeline.evaluation.trained_run import TrainedRun, by_model, load_run

KEY = ["dataset", "recipe", "seed"]
SCORED = 128  # images a batch


@arithmetic()
def main() -> None:
    """Score the runs and compare as the command line asks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.noise",
        description="Score the test images under each trained run in runs/train/ on a CPU, once with the noise of each "
        "seed, write the means, and print how far they spread. A few minutes for the laptop preset.",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/train"), help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
    parser.add_argument("--out", type=Path, default=Path("reports/published/benchmarks/noise.csv"))
    arguments = parser.parse_args()
    keep_freed_memory()
    table = pd.DataFrame(list(scores(arguments.runs, arguments.data, arguments.seeds)))
    if table.empty:
        parser.error(f"{arguments.runs} has no complete run; train with: dvc repro")
    table.to_csv(arguments.out, index=False)
    say(summary(table))


def scores(runs: Path, data: Path, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """For each complete run and each seed of the noise the mean bits per dimension of the test images, a row each."""
    environment = describe_environment(torch.device("cpu"))
    about = environment.model_dump(include={"processor", "threads", "torch", "commit", "dirty"})
    for path in sorted(runs.glob("*/run.json")):
        run = load_run(path.parent, torch.device("cpu"))
        if run.record.status == "complete":
            dataset = load_dataset(data / run.record.dataset, run.record.dataset)
            for seed in seeds:
                bits = {"noise_seed": seed, "bits_per_dim": mean_bits(run, dataset, seed)}
                yield {**run.record.key._asdict(), **bits, **about}


@torch.no_grad()
def mean_bits(run: TrainedRun, dataset: Dataset, seed: int) -> float:
    """The mean bits per dimension of the test images with a seed's noise, each scored by the model of its class."""
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    noise, total = generator("test", seed), 0.0
    for model, (rows,) in by_model(run.models, labels):
        for batch in images[rows].split(SCORED):
            total += float(model.bits_per_dim(batch, generator=noise).double().sum())
    return total / len(images)


def spreads(table: pd.DataFrame) -> pd.DataFrame:
    """For each run the ``mean`` over the ``seeds`` of the noise, and how far the ``furthest`` seed is from it."""
    groups = table.groupby(KEY)["bits_per_dim"]
    return groups.agg(mean="mean", furthest=lambda bits: (bits - bits.mean()).abs().max(), seeds="count").reset_index()


def summary(table: pd.DataFrame) -> str:
    """The spread of each run, in words."""
    return "\n".join(
        f"{row.dataset} {row.recipe} {row.seed}: {row.mean:.4f} bits/dim, which the noise of each of {row.seeds} seeds "
        f"changes by at most {row.furthest:.4f}"
        for row in spreads(table).itertuples()
    )


if __name__ == "__main__":
    exit_with(main)
