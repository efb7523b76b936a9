"""The evaluate stage: scores one trained cell on the test set, checks its inverse, and draws samples."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunet import NonFiniteError
from pipeline.core.cell import Key, cell_parser
from pipeline.core.console import exit_with, say
from pipeline.core.dataset import load_dataset
from pipeline.core.environment import (
    choose_device,
    describe_environment,
    determinism,
    keep_freed_memory,
    memory_errors,
)
from pipeline.core.files import refuse_foreign, replacing, write_json
from pipeline.core.load import OtherCores
from pipeline.core.params import load_params
from pipeline.core.precision import arithmetic
from pipeline.evaluation.record import Evaluation
from pipeline.evaluation.scores import evaluate
from pipeline.evaluation.trained_run import load_run


@arithmetic()
def main() -> None:
    """Evaluate the cell that the command line names."""
    parser = cell_parser(
        "evaluate",
        "Score a trained run on the test set. Writes one JSON file and a folder with samples.npy, and bits.npy, the "
        "bits per dimension of each test image. Of a partial run, the trained classes are scored.",
        out="runs/evaluate/mnist-lunet-0.json",
        out_help="the JSON file to write",
        seed=True,
    )
    parser.add_argument("--samples", type=Path, help="the folder for samples.npy (default: runs/samples/<cell>)")
    parser.add_argument("--run", type=Path, help="the trained run (default: runs/train/<cell>)")
    arguments = parser.parse_args()
    key = Key(arguments.dataset, arguments.recipe, arguments.seed)
    params, other_cores = load_params(arguments.params), OtherCores()
    recipe, device = params.recipe(key.recipe), choose_device(params.device, params.preset)
    keep_freed_memory()  # a RealNVP scores twice as fast
    samples_folder = arguments.samples or Path("runs/samples", str(key))
    refuse_foreign(samples_folder, "samples.npy")
    dataset = load_dataset(arguments.data or Path("data", key.dataset), key.dataset)
    begin = time.perf_counter()
    trained = load_run(arguments.run or Path("runs/train", str(key)), device, key, recipe)
    results: dict[str, Any] = {"status": trained.record.status, "message": trained.record.message}
    no_samples = np.zeros((0, params.evaluate.sample_columns, *dataset.test_images.shape[1:]), dtype=np.uint8)
    arrays: dict[str, NDArray[Any]] = {"samples": no_samples}
    if trained.models:
        try:
            with determinism(params), memory_errors():
                scores, arrays = evaluate(trained.models, dataset, recipe, params.evaluate, arguments.seed)
            results |= scores if trained.record.status == "complete" else {"per_class": scores["per_class"]}
        except NonFiniteError as error:
            results = {"status": "diverged", "message": f"the trained weights fail on the test set: {error}"}
        except MemoryError as error:
            results = {"status": "out_of_memory", "message": str(error)}
    evaluation = Evaluation.model_validate(
        {
            **dict.fromkeys(Evaluation.model_fields),
            **key._asdict(),
            **results,
            "classes": recipe.classes,
            "draws": params.evaluate.draws,
            "separate_noise": True,
            "seconds": round(time.perf_counter() - begin, 3),
            "environment": describe_environment(device),
            "other_cores": other_cores.mean(),
        }
    )
    with replacing(samples_folder) as folder:
        folder.mkdir()
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    write_json(arguments.out, evaluation.model_dump(mode="json", exclude_unset=True), sealed=True)
    figures = ""
    if evaluation.test and evaluation.round_trip:
        pixels = evaluation.round_trip.images * dataset.test_images[0].size
        lost = round(pixels * (1 - evaluation.round_trip.pixels_exact))
        figures = f", {evaluation.test.bits_per_dim.mean:.4f} bits/dim on the test set"
        figures += f", {lost:,} of {pixels:,} pixels do not come back exactly from their latents"
    elif evaluation.status == "partial":
        figures = f", {len(evaluation.per_class or ())} classes"
    say(f"{key}: {evaluation.status}{figures}, written to {arguments.out}")


if __name__ == "__main__":
    exit_with(main)
