"""The evaluate stage: scores one trained cell on the test set, checks its inverse, and draws samples."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lunet import (
    ImageFlow,
    NonFiniteError,
    SavedFlowError,
    load_flow,
)
from pipeline.core.cell import cell_parser
from pipeline.core.console import UserError, exit_with, say
from pipeline.core.dataset import load_dataset
from pipeline.core.environment import (
    choose_device,
    describe_environment,
    determinism,
    is_out_of_memory,
    keep_freed_memory,
)
from pipeline.core.files import read_json, refuse_foreign, replacing, without_paths, write_json
from pipeline.core.params import Recipe, load_params
from pipeline.evaluation.scores import RESULTS, evaluate
from pipeline.training.models import groups


def main() -> None:
    """Evaluate the cell that the command line names."""
    parser = cell_parser(
        "evaluate",
        "Score a trained run on the test set. Writes one JSON file and a folder with samples.npy.",
        out="runs/evaluate/mnist-lunet-0.json",
        out_help="the JSON file to write",
        seed=True,
    )
    parser.add_argument("--samples", type=Path, help="the folder for samples.npy (default: runs/samples/<cell>)")
    parser.add_argument("--run", type=Path, help="the trained run (default: runs/train/<cell>)")
    arguments = parser.parse_args()
    cell = f"{arguments.dataset}-{arguments.recipe}-{arguments.seed}"
    params = load_params(arguments.params)
    recipe, device = params.recipe(arguments.recipe), choose_device(params)
    keep_freed_memory()  # a RealNVP scores twice as fast
    samples_folder = arguments.samples or Path("runs/samples") / cell
    refuse_foreign(samples_folder, "samples.npy")
    dataset = load_dataset(arguments.data or Path("data") / arguments.dataset, arguments.dataset)
    run_folder = arguments.run or Path("runs/train") / cell
    run = read_run(
        run_folder, {"dataset": arguments.dataset, "recipe": arguments.recipe, "seed": arguments.seed}, recipe
    )
    result = {
        "dataset": arguments.dataset,
        "recipe": arguments.recipe,
        "seed": arguments.seed,
        "status": run["status"],
        "message": run["message"],
        "classes": recipe.classes,
        "draws": params.evaluate.draws,
        **dict.fromkeys(RESULTS),
    }
    grids = {"samples": np.zeros((0, params.evaluate.sample_columns, *dataset.test_images.shape[1:]), dtype=np.uint8)}
    begin = time.perf_counter()
    if run["status"] == "complete":
        models = {key: _load(run_folder / "flows" / key, device) for key in groups(dataset, recipe)}
        try:
            with determinism(params):
                measured, grids = evaluate(models, dataset, recipe, params.evaluate, arguments.seed)
            result |= measured
        except NonFiniteError as error:
            message = f"the trained weights fail on the test set: {error}"
            result |= {"status": "diverged", "message": without_paths(message)}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            result |= {"status": "out_of_memory", "message": without_paths(str(error).splitlines()[0])}
    result["seconds"] = round(time.perf_counter() - begin, 3)
    result["environment"] = describe_environment(device)
    with replacing(samples_folder) as folder:
        folder.mkdir()
        for name, grid in grids.items():
            np.save(folder / f"{name}.npy", grid, allow_pickle=False)
    write_json(arguments.out, result, sealed=True)
    bits = f", {result['test']['bits_per_dim']['mean']:.4f} bits/dim on the test set" if result["test"] else ""
    say(f"{cell}: {result['status']}{bits}, written to {arguments.out}")


def read_run(folder: Path, names: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The `run.json` of a trained run.

    Raises:
        UserError: If the run is of another cell or of other parameters.
    """
    run: dict[str, Any] = read_json(folder / "run.json")
    expected = {**names, "recipe_params": recipe.model_dump(mode="json")}
    differing = [key for key, value in expected.items() if run.get(key) != value]
    if differing or "status" not in run:
        raise UserError(
            f"{folder / 'run.json'} is not the run that was asked for: {', '.join(differing) or 'status'} differ; "
            "train it again with: dvc repro"
        )
    return run


def _load(folder: Path, device: torch.device) -> ImageFlow:
    try:
        return load_flow(folder, device)
    except SavedFlowError as error:
        raise UserError(f"{error}; train it again with: dvc repro -f -s train") from None


if __name__ == "__main__":
    exit_with(main)
