"""The train stage: fits one recipe to one data set and saves the weights that are best on held-out images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lunet import save_flow
from pipeline.core.cell import cell_parser
from pipeline.core.console import StopRequest, exit_with, say
from pipeline.core.dataset import Dataset, load_dataset
from pipeline.core.environment import (
    choose_device,
    describe_environment,
    determinism,
    keep_freed_memory,
)
from pipeline.core.files import refuse_foreign, replacing, write_json
from pipeline.core.params import Recipe, Training, load_params
from pipeline.training.checkpoints import Checkpoint, checkpoint_folder, checkpoints
from pipeline.training.fit import Fit, fit, write_history
from pipeline.training.models import build, groups


def main() -> None:
    """Train the cell that the command line names."""
    parser = cell_parser(
        "train",
        "Fit one recipe to one data set. Writes a folder with flows/<model>/, history.csv and run.json. A training "
        "that was stopped or killed goes on from its last checkpoint when the same command is given again.",
        out="runs/train/mnist-lunet-0",
        out_help="the folder to write; an older one is replaced",
        seed=True,
    )
    parser.add_argument(
        "--reached", action="store_true", help="train nothing; print each model's epochs so far, of a stopped training"
    )
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    recipe, device = params.recipe(arguments.recipe), choose_device(params)
    keep_freed_memory()
    refuse_foreign(arguments.out, "run.json")
    dataset = load_dataset(arguments.data or Path("data") / arguments.dataset, arguments.dataset)
    name = f"{arguments.dataset} {arguments.recipe} {arguments.seed}"
    identity = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": arguments.seed,
        "data": dataset.info["sha256"],
        "device": device.type,
        "deterministic": params.deterministic,
    }
    if arguments.reached:
        say(
            json.dumps(
                completed_epochs(
                    checkpoint_folder(arguments.out, identity), [*groups(dataset, recipe)], recipe.training
                )
            )
        )
        return
    with (
        StopRequest() as request,
        determinism(params),
        checkpoints(arguments.out, identity) as checkpoint_path,
        replacing(arguments.out) as folder,
    ):
        folder.mkdir()

        def checkpoint(key: str) -> Checkpoint:
            return Checkpoint(checkpoint_path / f"{key}.pt", params.checkpoint_seconds, request)

        fits, parameters = train(dataset, recipe, arguments.seed, device, folder / "flows", name, checkpoint)
        write_history(folder / "history.csv", fits)
        failed = next((fit for fit in fits.values() if fit.status != "complete"), None)
        run = {
            "dataset": arguments.dataset,
            "recipe": arguments.recipe,
            "seed": arguments.seed,
            "status": failed.status if failed else "complete",
            "message": failed.message if failed else None,
            "seconds": sum(fit.seconds for fit in fits.values()),
            "parameters": parameters,
            "recipe_params": recipe.model_dump(mode="json"),
            "models": {key: _without_history(fit) for key, fit in fits.items()},
            "environment": describe_environment(device),
        }
        write_json(folder / "run.json", run, sealed=True)
    say(f"{name}: {run['status']} in {run['seconds']:.0f} s, written to {arguments.out}")


def train(
    dataset: Dataset,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    flows: Path,
    name: str,
    checkpoint: Callable[[str], Checkpoint] = lambda _: Checkpoint(),
) -> tuple[dict[str, Fit], dict[str, int]]:
    """Fit every model of a recipe and write those that are complete to ``flows/<model>``.

    A model that diverges or runs out of memory is recorded as such, and the remaining models are still trained. Each
    model resumes from its ``checkpoint``; a completed model is not trained again.

    Returns:
        The fit of each model, by name, and the numbers of stored and of free parameters of one model.
    """
    images, labels = torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.train_labels)
    test_images, test_labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    height, width = images.shape[1:]
    fits = {}
    for index, (key, label) in enumerate(groups(dataset, recipe).items()):
        model_seed = 1_000_003 * seed + index
        torch.manual_seed(model_seed)
        model = build(recipe, (1, height, width))
        model_images, model_test, model_name = images, test_images, name
        if label is not None:
            model_images, model_test, model_name = (
                images[labels == label],
                test_images[test_labels == label],
                f"{name} class {key}",
            )
        fits[key] = fit(model, recipe, model_images, model_test, device, model_seed, model_name, checkpoint(key))
        if label is not None and fits[key].message:
            fits[key].message = f"class {key}: {fits[key].message}"
        if fits[key].status == "complete":
            save_flow(model, flows / key)
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    return fits, {"stored": stored, "free": model.flow.free_parameters()}


def completed_epochs(folder: Path, models: Sequence[str], training: Training | None) -> dict[str, float]:
    """The epochs that each model has completed, from a folder of checkpoints; 0 without a checkpoint."""
    epochs = dict.fromkeys(models, 0.0)
    for key in models:
        saved = Checkpoint(folder / f"{key}.pt").read()
        if saved is None or training is None:
            continue
        if saved["descent"] is not None:
            per_epoch = math.ceil(saved["fit"]["train_images"] / training.batch_size)
            epochs[key] = round(saved["descent"]["step"] / per_epoch, 4)
        elif saved["fit"]["history"]:
            epochs[key] = float(saved["fit"]["history"][-1]["epoch"])
    return epochs


def _without_history(fit: Fit) -> dict[str, Any]:
    return {key: value for key, value in asdict(fit).items() if key != "history"}


if __name__ == "__main__":
    exit_with(main)
