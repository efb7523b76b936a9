"""The evaluate stage: scores one cell on the test set, checks its inverse, and draws samples."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lunet import (
    ClassFlows,
    ImageFlow,
    NonFiniteError,
    SavedFlowError,
    load_flow,
    pixel_bits,
    poster_bits_per_pixel,
    standard_normal_log_prob,
)
from pipeline.cell import cell_parser
from pipeline.console import UserError, exit_with, say
from pipeline.conversion import batch_factor, released_code
from pipeline.datasets import Bytes, Dataset, load_dataset
from pipeline.environment import choose_device, describe_environment, determinism, is_out_of_memory, keep_freed_memory
from pipeline.files import read_json, refuse_foreign, replacing, without_paths, write_json
from pipeline.latents import FittedBase, SingularBaseError, fitted_normality, normality
from pipeline.models import START_IMAGES, groups
from pipeline.params import Evaluate, Recipe, load_params

RESULTS = (
    "test",
    "per_class",
    "round_trip",
    "latents",
    "fitted_base_bits_per_dim",
    "fitted_latents",
    "interpolations",
    "sample_class_accuracy",
    "classification_accuracy",
)
INTERPOLATIONS = 5


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
    folder = arguments.run or Path("runs/train") / cell
    run = read_run(folder, {"dataset": arguments.dataset, "recipe": arguments.recipe, "seed": arguments.seed}, recipe)
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
        models = {key: _load(folder / "flows" / key, device) for key in groups(dataset, recipe)}
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
    with replacing(samples_folder) as fresh:
        fresh.mkdir()
        for name, grid in grids.items():
            np.save(fresh / f"{name}.npy", grid, allow_pickle=False)
    write_json(arguments.out, result, sealed=True)
    bits = f", {result['test']['bits_per_dim']['mean']:.4f} bits/dim on the test set" if result["test"] else ""
    say(f"{cell}: {result['status']}{bits}, written to {arguments.out}")


def read_run(folder: Path, names: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The `run.json` of a trained run; a `UserError` if the run is another cell's or has other parameters."""
    run: dict[str, Any] = read_json(folder / "run.json")
    wanted = {**names, "recipe_params": recipe.model_dump(mode="json")}
    differing = [key for key, value in wanted.items() if run.get(key) != value]
    if differing or "status" not in run:
        raise UserError(
            f"{folder / 'run.json'} is not the run that was asked for: {', '.join(differing) or 'status'} differ; "
            "train it again with: dvc repro"
        )
    return run


@torch.no_grad()
def evaluate(
    models: dict[str, ImageFlow], dataset: Dataset, recipe: Recipe, settings: Evaluate, seed: int
) -> tuple[dict[str, Any], dict[str, Bytes]]:
    """Everything that is said of trained models on the test set, and the samples drawn from them.

    With one model a class, each test image is scored by the model of its own class, as in the paper.

    Raises:
        NonFiniteError: If an image has no finite latent or no finite way back, or a sample leaves the numbers' range.

    Returns:
        The fields `RESULTS`, and grids of images with shape (rows, columns, H, W): samples, the nearest training image
        of each, interpolations, and for an LU-Net also samples from a Gaussian fitted to its training latents.
    """
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    bits, released, latents = torch.zeros(len(images)), torch.zeros(len(images)), []
    by_draw = torch.zeros(settings.draws, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for _, rows, model in _by_model(models, labels):
        device = next(iter(model.state_dict().values())).device
        for part in rows.split(settings.batch_size):
            batch = images[part].to(device)
            for draw in range(settings.draws):
                y, log_slope = model.preprocess(batch, generator)
                z, log_det = model.flow(y)
                log_prob = standard_normal_log_prob(z) + log_det
                if draw == 0:
                    latents.append(z.cpu())
                own = pixel_bits(log_prob + log_slope, y.shape[1]).cpu()
                bits[part] += own / settings.draws
                by_draw[draw] += own.double().sum() / len(images)
                released[part] += released_figure(recipe, log_prob, y.shape[1], rows) / settings.draws
    if not bits.isfinite().all():
        raise NonFiniteError(f"{int((~bits.isfinite()).sum())} test images have no finite likelihood")
    samples = draw_samples(models, settings, seed)
    nearest = nearest_training_images(samples, dataset)
    between = interpolate(models, images, labels, settings)

    def likelihood(of: Tensor) -> dict[str, Any]:
        printed = None if recipe.model.kind == "histogram" else float(released[of].double().mean())
        return {"images": int(of.sum()), "bits_per_dim": summary(bits[of]), "poster_bits_per_pixel": printed}

    results = {
        "test": {
            **likelihood(torch.ones_like(labels, dtype=torch.bool)),
            "bits_per_dim_by_draw": by_draw.tolist(),
        },
        "per_class": {str(label): likelihood(labels == label) for label in range(len(dataset.class_names))},
        "round_trip": round_trip(models, images, labels, settings),
        "latents": normality(torch.cat(latents)),
        "fitted_base_bits_per_dim": None,
        "fitted_latents": None,
        "interpolations": len(between),
        "sample_class_accuracy": class_accuracy(nearest, dataset) if recipe.classes == "each" else None,
        "classification_accuracy": (
            classification_accuracy(models, images, labels, settings) if recipe.classes == "each" else None
        ),
    }
    nearest_images = dataset.train_images[nearest.numpy()]
    grids = {"samples": samples.numpy(), "nearest": nearest_images, "interpolations": between.numpy()}
    if recipe.model.kind == "lunet":
        with contextlib.suppress(SingularBaseError):
            fitted, grids["fitted_base"] = from_fitted_bases(models, dataset, settings, seed)
            results |= fitted
    return results, grids


def released_figure(recipe: Recipe, log_prob: Tensor, features: int, rows: Tensor) -> Tensor:
    """What the released code would print for these images, in its own currency."""
    if released_code(recipe) == "lunet":
        return poster_bits_per_pixel(log_prob, features, code="lunet").cpu()
    factor = batch_factor(len(rows))
    return poster_bits_per_pixel(log_prob, features, code="realnvp", batch_factor=factor).cpu()


def summary(bits: Tensor) -> dict[str, float]:
    """Mean, median, spread and tail of the bits per dimension of images, with shape (N,)."""
    values = bits.double()
    worst = values.sort(descending=True).values[: max(1, len(values) // 100)]
    return {
        "mean": float(values.mean()),
        "median": float(values.median()),
        "std": float(values.std(correction=0)),
        "min": float(values.min()),
        "max": float(values.max()),
        "worst_percent_share": float(worst.sum() / values.sum()),
    }


def round_trip(models: dict[str, ImageFlow], images: Tensor, labels: Tensor, settings: Evaluate) -> dict[str, float]:
    """How exactly the first images come back from their latents, in latent space and in 8-bit pixels."""
    images, labels = images[: settings.round_trip_images], labels[: settings.round_trip_images]
    largest, exact, within_one = 0.0, 0, 0
    for _, rows, model in _by_model(models, labels):
        device = next(iter(model.state_dict().values())).device
        for part in rows.split(settings.batch_size):
            y, _ = model.preprocess(images[part].to(device), torch.Generator(device).manual_seed(0))
            z, _ = model.flow(y)
            back = model.flow.inverse(z)
            again, _ = model.flow(back)
            largest = max(largest, float((again - z).abs().max()))
            off = (model.postprocess(back).cpu().flatten().int() - images[part].flatten().int()).abs()
            exact, within_one = exact + int((off == 0).sum()), within_one + int((off <= 1).sum())
    return {
        "images": len(images),
        "latent_max_error": largest,
        "pixels_exact": exact / images.numel(),
        "pixels_within_one": within_one / images.numel(),
    }


def draw_samples(models: Mapping[str, ImageFlow | FittedBase], settings: Evaluate, seed: int) -> Tensor:
    """The first samples of each model, none chosen: a row a class, or rows of one model, with shape (R, C, H, W)."""
    columns = settings.sample_columns
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for model in models.values():
        count = columns if len(models) > 1 else settings.sample_rows * columns
        rows.append(model.sample(count, generator).cpu().flatten(0, 1).unflatten(0, (-1, columns)))
    return torch.cat(rows)


def from_fitted_bases(
    models: dict[str, ImageFlow], dataset: Dataset, settings: Evaluate, seed: int
) -> tuple[dict[str, Any], Bytes]:
    """How well test images and their latents agree with each model's `FittedBase`, and samples from these bases.

    Raises:
        SingularBaseError: If a model has no such base.

    Returns:
        The fields ``fitted_base_bits_per_dim``, a mean over the test images, and ``fitted_latents``, and the samples.
    """
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    train_images, train_labels = torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.train_labels)
    bases, bits, latents = {}, [], []
    for key, rows, model in _by_model(models, labels):
        own = train_images if key == "all" else train_images[train_labels == int(key)]
        bases[key] = FittedBase(model, own[:START_IMAGES], settings.batch_size)
        scored, standardised = bases[key].score(images[rows])
        bits.append(scored)
        latents.append((standardised, bases[key].images))
    fitted = {
        "fitted_base_bits_per_dim": float(torch.cat(bits).mean()),
        "fitted_latents": fitted_normality(latents),
    }
    return fitted, draw_samples(bases, settings, seed).numpy()


def nearest_training_images(samples: Tensor, dataset: Dataset) -> Tensor:
    """Which training image is nearest to each sample, by the Euclidean distance of their pixels.

    Args:
        samples: 8-bit images, with shape (R, C, H, W).
        dataset: The data set.

    Returns:
        Indices, with shape (R, C).
    """
    train = torch.from_numpy(dataset.train_images).flatten(1).float()
    nearest = torch.cdist(samples.flatten(0, 1).flatten(1).float(), train).argmin(1)
    return nearest.unflatten(0, samples.shape[:2])


def class_accuracy(nearest: Tensor, dataset: Dataset) -> float:
    """The share of samples, a class a row, whose nearest training image (R, C) has the class that was asked for."""
    labels = torch.from_numpy(dataset.train_labels)[nearest]
    return float((labels == torch.arange(len(nearest))[:, None]).double().mean())


def interpolate(models: dict[str, ImageFlow], images: Tensor, labels: Tensor, settings: Evaluate) -> Tensor:
    """The ways in latent space between the first pairs of test images that follow each other and differ in class.

    With one model a class, it is the model of the first image's class. A way on which an image has no finite latent, or
    a latent no finite image, is left out.

    Returns:
        8-bit images, with shape (pairs, sample_columns, H, W); the first and the last of a row are the test images.
    """
    rows = [images.new_zeros((0, settings.sample_columns, *images.shape[1:]))]
    for index in different_pairs(labels, INTERPOLATIONS):
        model = models["all"] if "all" in models else models[str(int(labels[index]))]
        device = next(iter(model.state_dict().values())).device
        with contextlib.suppress(NonFiniteError):
            pair = images[index : index + 2].to(device)
            z, _ = model.flow(model.preprocess(pair, torch.Generator(device).manual_seed(0))[0])
            way = spherical(z[0], z[1], settings.sample_columns)
            rows.append(model.postprocess(model.flow.inverse(way)).cpu().flatten(0, 1)[None])
    return torch.cat(rows)


def different_pairs(labels: Tensor, n: int) -> list[int]:
    """The first ``n`` even places at which a label differs from the next one."""
    return [place for place in range(0, len(labels) - 1, 2) if labels[place] != labels[place + 1]][:n]


def spherical(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Latents from ``start`` to ``end`` (D,), both included, at equal angles and with lengths in between; (steps, D).

    Normal latents lie near a sphere of radius sqrt(D), which a straight line would leave in the middle.
    """
    share = torch.linspace(0, 1, steps, dtype=torch.float64, device=start.device)[:, None]
    ends = torch.stack([start, end]).double()
    lengths = ends.norm(dim=1, keepdim=True)
    first, second = ends / lengths
    angle = (first @ second).clamp(-1, 1).acos()
    way = (((1 - share) * angle).sin() * first + (share * angle).sin() * second) / angle.sin()
    way = way * ((1 - share) * lengths[0] + share * lengths[1])
    # The ends themselves, so that the images come back; and a straight line where there is no angle.
    straight = (1 - share) * ends[0] + share * ends[1]
    exact = (share == 0) | (share == 1) | ~way.isfinite().all()
    return torch.where(exact, straight, way).to(start.dtype)


def classification_accuracy(models: dict[str, ImageFlow], images: Tensor, labels: Tensor, settings: Evaluate) -> float:
    """The share of test images that Bayes' rule, with all classes alike, gives to their own class."""
    classifier = ClassFlows(models)
    device = next(iter(classifier.state_dict().values())).device
    generator = torch.Generator(device).manual_seed(0)
    names = torch.tensor([int(name) for name in classifier.names])
    found = [
        names[classifier.classify(batch.to(device), generator=generator).cpu()]
        for batch in images.split(settings.batch_size)
    ]
    return float((torch.cat(found) == labels).double().mean())


def _by_model(models: dict[str, ImageFlow], labels: Tensor) -> Iterator[tuple[str, Tensor, ImageFlow]]:
    """Each model with its name and the indices of the images it answers for."""
    for key, model in models.items():
        rows = torch.arange(len(labels)) if key == "all" else (labels == int(key)).nonzero().flatten()
        if len(rows):
            yield key, rows, model


def _load(folder: Path, device: torch.device) -> ImageFlow:
    try:
        return load_flow(folder, device)
    except SavedFlowError as error:
        raise UserError(f"{error}; train it again with: dvc repro -f -s train") from None


if __name__ == "__main__":
    exit_with(main)
