"""Trains variants of a recipe and records the bits per dimension of each on held-out training images."""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import torch

from pipeline.core.console import UserError, exit_with, say
from pipeline.core.dataset import load_dataset
from pipeline.core.environment import choose_device, describe_environment, keep_freed_memory
from pipeline.core.files import write_text
from pipeline.core.params import Params, load_params, read_yaml, validate
from pipeline.presets.merged import load_preset
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.fit import fit
from pipeline.training.models import build

SWEEPS = Path(__file__).with_name("sweeps.yaml")
COLUMNS = [
    "sweep", "variant", "dataset", "seed", "recipe", "changes", "status", "holdout_bits_per_dim", "best_epoch",
    "train_bits_per_dim", "epochs", "steps", "seconds", "parameters", "device", "processor", "gpu", "threads", "torch",
    "commit", "dirty",
]  # fmt: skip
KEY_COLUMNS = COLUMNS[:6]


def main() -> None:
    """Run the sweep that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sweep",
        description="Train the variants of a sweep of pipeline/sweeps.yaml, each on most of the training images, and "
        "write how it does on the rest; the test set is not looked at. A variant that the table has is not run again.",
        epilog="example: python -m pipeline.sweep ablation --dataset mnist",
    )
    sweeps: dict[str, Any] = read_yaml(SWEEPS)
    parser.add_argument("sweep", choices=list(sweeps))
    parser.add_argument("--dataset", required=True, help="which data set")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--variant", help="this variant only")
    parser.add_argument("--data", type=Path, help="the folder of the data set (default: data/<dataset>)")
    parser.add_argument("--params", type=Path, help="default: the laptop preset")
    parser.add_argument("--out", type=Path, help="the table (default: reports/published/sweeps/<sweep>.csv)")
    arguments = parser.parse_args()
    keep_freed_memory()
    params = load_params(arguments.params) if arguments.params else load_preset("laptop")
    variants = changes_of(sweeps[arguments.sweep])
    chosen = [arguments.variant] if arguments.variant else list(variants)
    if unknown := set(chosen) - set(variants):
        raise UserError(f"the sweep {arguments.sweep} has no variant {unknown.pop()}; it has: {', '.join(variants)}")
    table = arguments.out or Path("reports/published/sweeps") / f"{arguments.sweep}.csv"
    dataset = load_dataset(arguments.data or Path("data") / arguments.dataset, arguments.dataset)
    images = torch.from_numpy(dataset.train_images)
    for variant in chosen:
        recipe_name, changes = variants[variant]
        row: dict[str, Any] = {
            "sweep": arguments.sweep,
            "variant": variant,
            "dataset": arguments.dataset,
            "seed": arguments.seed,
            "recipe": recipe_name,
            "changes": json.dumps(changes),
        }
        rows = read_table(table)
        if any(all(old[key] == str(row[key]) for key in KEY_COLUMNS) for old in rows):
            say(f"{variant}: is in {table} already")
            continue
        recipe = changed(params, recipe_name, changes).recipe(recipe_name)
        if recipe.training is None or recipe.training.holdout == "test":
            raise UserError(
                f"{variant}: a sweep is judged on held-out training images; training.holdout must be a share"
            )
        if recipe.classes != "all":
            raise UserError(f"{variant}: a sweep trains one model for all classes; classes must be all")
        device = choose_device(params)
        torch.manual_seed(arguments.seed)
        model = build(recipe, (1, *images.shape[1:]))
        result = fit(model, recipe, images, images[:0], device, arguments.seed, variant, Checkpoint())
        environment = describe_environment(device)
        last = result.history[-1] if result.history else {}
        row |= {
            "status": result.status,
            "holdout_bits_per_dim": result.best_holdout_bits_per_dim,
            "best_epoch": result.best_epoch,
            "train_bits_per_dim": last.get("train_bits_per_dim"),
            "epochs": result.epochs,
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "parameters": model.flow.free_parameters(),
            **{key: environment[key] for key in COLUMNS if key in environment},
        }
        # Read again, since another process may have added a row.
        write_table(table, [*read_table(table), row])
        say(f"{variant}: {result.status}, {result.best_holdout_bits_per_dim} bits/dim held out, written to {table}")


def changes_of(sweep: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The recipe of each variant of a sweep, and the variant's changes to it, by dotted key.

    In a ``cumulative`` sweep, each variant includes the changes of all variants before it.
    """
    variants, inherited = {}, dict(sweep.get("changes", {}))
    for name, additions in sweep["variants"].items():
        changes = {**inherited, **(additions or {})}
        recipe = changes.pop("recipe", sweep["recipe"])
        variants[name] = (recipe, changes)
        if sweep.get("cumulative"):
            inherited = {**inherited, **(additions or {})}
    return variants


def changed(params: Params, recipe: str, changes: dict[str, Any]) -> Params:
    """Parameters with some of a recipe's values changed; raises a `UserError` for an unknown key or a wrong value."""
    values = params.model_dump(mode="json")
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values["recipes"][recipe]
        for part in path:
            section = section.get(part, {})
        section[last] = value
    return validate(values, str(SWEEPS))


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table, all values as text; empty if the file does not exist."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


if __name__ == "__main__":
    exit_with(main)
