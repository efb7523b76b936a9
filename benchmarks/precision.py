"""Trains RealNVP in float32 and in bfloat16 and compares their likelihoods: python -m benchmarks.precision --help."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from lunet import ImageFlow, load_flow
from pipeline.core.dataset import Dataset, load_dataset
from pipeline.core.environment import describe_environment, keep_freed_memory
from pipeline.core.params import Recipe
from pipeline.core.precision import arithmetic
from pipeline.core.streams import generator
from pipeline.presets.merged import load_preset
from pipeline.results.statistics import mean_interval
from pipeline.train import train

KEY = ["dataset", "clipping", "seed", "precision"]
PRECISIONS = ("float32", "bfloat16")
# The norms at which gradients are clipped, by name: as in the laptop preset, and as in the paper's.
CLIPPING = {"none": None, "at 10": 10.0}
SCORED = 128  # images a batch


def trained_bits(dataset: Dataset, recipe: Recipe, seed: int) -> float:
    """The mean bits per dimension of the test images under one training, scored in float32."""
    with TemporaryDirectory() as folder:
        train(dataset, recipe, seed, torch.device("cpu"), Path(folder), f"{dataset.name} {seed}")
        model = load_flow(Path(folder) / "all")
    assert isinstance(model, ImageFlow)
    noise, batches = generator("test", seed), torch.from_numpy(dataset.test_images).split(SCORED)
    with torch.no_grad():
        bits = torch.cat([model.bits_per_dim(batch, generator=noise) for batch in batches])
    return float(bits.double().mean())


def summary(table: pd.DataFrame) -> str:
    """The mean differences of bfloat16 from float32, paired by seed, with their intervals."""
    bits = table.pivot_table("bits_per_dim", ["dataset", "clipping", "seed"], "precision")
    lines = []
    for (dataset, clipping), pairs in bits.groupby(["dataset", "clipping"]):
        difference = mean_interval([*(pairs["bfloat16"] - pairs["float32"])])
        lines.append(
            f"{dataset}, clipping {clipping}: {pairs['float32'].mean():.4f} bits/dim in float32; bfloat16 changes it "
            f"by {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}], {difference.n} seeds"
        )
    return "\n".join(lines)


def fill(path: Path, recipe: Recipe, datasets: Sequence[Path], seeds: Sequence[int]) -> pd.DataFrame:
    """The table in a file, after the trainings that it lacks; it is written after each."""
    assert recipe.training is not None
    environment = describe_environment(torch.device("cpu"))
    about = environment.model_dump(include={"processor", "threads", "torch", "commit", "dirty"})
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEY)
    for dataset, clipping, seed, precision in product(map(load_dataset, datasets), CLIPPING, seeds, PRECISIONS):
        key = dict(zip(KEY, (dataset.name, clipping, seed, precision), strict=True))
        if (table[KEY] == pd.Series(key)).all(axis=1).any():
            continue
        changes, begin = {"precision": precision, "clip_norm": CLIPPING[clipping]}, time.perf_counter()
        training = recipe.training.model_copy(update=changes)
        bits = trained_bits(dataset, recipe.model_copy(update={"training": training}), seed)
        row = {**key, "bits_per_dim": bits, "seconds": round(time.perf_counter() - begin, 1), **about}
        table = pd.DataFrame([*table.to_dict("records"), row])
        table.to_csv(path, index=False)
    return table


@arithmetic()
def main() -> None:
    """Train and compare as the command line asks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description="Train the laptop preset's RealNVP on a CPU, its networks in float32 and in bfloat16, from the "
        "same seeds, with gradients clipped or not; write the test likelihoods, all scored in float32, and print the "
        "differences. A minute or two for each training; those that the table has are not done again.",
    )
    parser.add_argument("--data", type=Path, nargs="+", default=[Path("data/mnist"), Path("data/fashion_mnist")])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("reports/published/benchmarks/precision.csv"))
    arguments = parser.parse_args()
    keep_freed_memory()
    print(summary(fill(arguments.out, load_preset("laptop").recipe("realnvp"), arguments.data, arguments.seeds)))


if __name__ == "__main__":
    main()
