"""Trains variants of a recipe and records the bits per dimension of each on held-out training images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pipeline.core.console import UserError, command_parser, exit_with, say
from pipeline.core.dataset import load_dataset
from pipeline.core.environment import choose_device, describe_environment, keep_freed_memory
from pipeline.core.params import Params, load_params, read_yaml, validate
from pipeline.core.streams import stream_seed
from pipeline.presets.merged import load_preset
from pipeline.results.tables import write_table
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.fit import fit
from pipeline.training.models import build, checked_recipe

SWEEPS = Path(__file__).with_name("sweeps.yaml")
COLUMNS = [
    "sweep", "variant", "dataset", "seed", "recipe", "changes", "status", "holdout_bits_per_dim", "best_epoch",
    "train_bits_per_dim", "epochs", "steps", "seconds", "parameters", "device", "processor", "gpu", "threads", "torch",
    "commit", "dirty",
]  # fmt: skip
KEY_COLUMNS = COLUMNS[:6]


def main() -> None:
    """Run the sweep that the command line names."""
    parser = command_parser(
        "sweep",
        "Train the variants of a sweep of pipeline/sweeps.yaml, each on most of the training images, and "
        "write how it does on the rest; the test set is not used. A variant that the table has is not run again.",
        example="ablation --dataset mnist",
        params=False,
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
        recipe, changes = variants[variant]
        key = [arguments.sweep, variant, arguments.dataset, str(arguments.seed), recipe, json.dumps(changes)]
        if (read_table(table)[KEY_COLUMNS] == key).all(axis=1).any():
            say(f"{variant}: is in {table} already")
            continue
        outcome = train(variant, changed(params, recipe, changes), recipe, images, arguments.seed)
        row = pd.DataFrame([dict(zip(KEY_COLUMNS, key, strict=True)) | outcome], columns=COLUMNS, dtype=object)
        # Read again, since another process may have added a row.
        write_table(table, pd.concat([read_table(table), row]))
        say(f"{variant}: {outcome['status']}, {outcome['holdout_bits_per_dim']} bits/dim held out, written to {table}")


def train(variant: str, params: Params, recipe_name: str, images: Tensor, seed: int) -> dict[str, Any]:
    """Train a variant on uint8 images (N, H, W), and return the outcome and the environment by column.

    Raises:
        UserError: If the recipe has a wrong value, holds out the test set, or trains a model for each class.
    """
    recipe, device = checked_recipe(params, recipe_name, str(SWEEPS)), choose_device(params.device, params.preset)
    if recipe.training is None or recipe.training.holdout == "test":
        raise UserError(f"{variant}: a sweep is judged on held-out training images; training.holdout must be a share")
    if recipe.classes != "all":
        raise UserError(f"{variant}: a sweep trains one model for all classes; classes must be all")
    torch.manual_seed(stream_seed("weights", seed))
    model = build(recipe, (1, *images.shape[1:]))
    result = fit(model, recipe, images, images[:0], device, seed, variant, Checkpoint())
    return dict(describe_environment(device)) | {
        "status": result.status,
        "holdout_bits_per_dim": result.best_holdout_bits_per_dim,
        "best_epoch": result.best_epoch,
        "train_bits_per_dim": result.history[-1].get("train_bits_per_dim") if result.history else None,
        "epochs": result.epochs,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "parameters": model.flow.free_parameters(),
    }


def changes_of(sweep: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The recipe of each variant of a sweep, and the variant's changes to it, by dotted key.

    In a ``cumulative`` sweep, each variant includes the changes of all variants before it.
    """
    variants, inherited = {}, dict(sweep.get("changes", {}))
    for name, additions in sweep["variants"].items():
        changes = inherited | (additions or {})
        if sweep.get("cumulative"):
            inherited = changes.copy()
        variants[name] = (changes.pop("recipe", sweep["recipe"]), changes)
    return variants


def changed(params: Params, recipe: str, changes: dict[str, Any]) -> Params:
    """Parameters with some of a recipe's values changed; raises a `UserError` for an unknown key or a wrong value."""
    values = params.model_dump(mode="json")
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values["recipes"][recipe]
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return validate(values, str(SWEEPS))


def read_table(path: Path) -> pd.DataFrame:
    """A sweep's table, all values as text; without rows if the file does not exist."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS, dtype=object)
    return pd.read_csv(path, dtype=object, keep_default_na=False)


if __name__ == "__main__":
    exit_with(main)
