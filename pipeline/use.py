"""Uses a trained run: draws samples, scores images, and classifies them."""

from __future__ import annotations

import argparse
import contextlib
import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lunet import ClassFlows, NonFiniteError
from pipeline.core.console import UserError, exit_with, say
from pipeline.core.dataset import DESCRIPTION, Bytes
from pipeline.core.environment import choose_device, keep_freed_memory
from pipeline.core.files import read_json, replacing
from pipeline.core.progress import Progress
from pipeline.core.streams import generator
from pipeline.evaluation.trained_run import TrainedRun, load_run
from pipeline.results.image_grid import write_grid
from pipeline.sources.custom import read_pictures

EXAMPLES = """examples:
  python -m pipeline.use runs/train/mnist-lunet-0 sample --count 64 --out samples.png
  python -m pipeline.use runs/train/mnist-lunet-0 score images.npz --out scores.csv
  python -m pipeline.use runs/train/mnist-lunet_released-0 classify folder/of/pngs

RUN is a folder that the train stage wrote: runs/train/<data set>-<recipe>-<seed>."""
Scores = Callable[[ClassFlows, Tensor, int, torch.Generator], Tensor]
FAILURES = {"diverged": "diverged", "out_of_memory": "ran out of memory"}


def main() -> None:
    """Run the command that the command line names."""
    arguments = _parser().parse_args()
    keep_freed_memory()
    trained = load_run(arguments.run, choose_device(arguments.device))
    if not trained.models:
        failure = f"its training {FAILURES.get(trained.record.status, trained.record.status)}: {trained.record.message}"
        raise UserError(f"{arguments.run} has no model to use: {failure}")
    try:
        with torch.no_grad():
            arguments.do(trained, arguments)
    except NonFiniteError as error:
        raise UserError(f"the model of {trained.name} fails: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.use",
        description="Use the model of a trained run: draw samples, score images in bits per pixel, or classify them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a trained run")
    kinds = parser.add_subparsers(required=True, metavar="{sample,score,classify}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=_number(0, 2**63 - 1), default=0, help="of all noise (default: %(default)s)")
    shared.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is")
    shared.add_argument("--batch", type=_number(1, 100_000), default=128, help="images at once (default: %(default)s)")
    images = argparse.ArgumentParser(add_help=False)
    images.add_argument(
        "images", type=Path, metavar="IMAGES", help="a .npz, .npy, IDX (plain or .gz) or .png file, or a folder with "
        ".png files: 8-bit grey images of the size that the run was trained on"
    )  # fmt: skip
    images.add_argument("--array", help="which array of a .npz file (default: images, test_images, or the only one)")
    images.add_argument("--draws", type=_number(1, 10_000), default=1, help="of dequantisation noise, averaged (1)")
    images.add_argument("--out", type=Path, help="write a row for each image into this CSV file")

    sample = kinds.add_parser("sample", parents=[shared], help="draw images from the model")
    sample.add_argument("--count", type=_number(1, 100_000), default=64, help="how many (default: %(default)s)")
    sample.add_argument(
        "--out", type=Path, default=Path("samples.png"), help="a .png file with all in a grid, or .npy or .npz with "
        "the array (default: %(default)s)"
    )  # fmt: skip
    sample.add_argument(
        "--temperature", type=_number(0, 100, float), default=1.0, help="below 1: nearer to the middle (1)"
    )
    sample.add_argument("--class", dest="label", metavar="CLASS", help="of one class, where there is a model a class")
    sample.set_defaults(do=sample_images)

    score = kinds.add_parser(
        "score",
        parents=[shared, images],
        help="bits per pixel of images",
        description="The bits per pixel of each 8-bit image; lower is better. Where there is a model a class, all "
        "classes count alike, unless --class names one.",
    )
    score.add_argument("--class", dest="label", metavar="CLASS", help="score by the model of one class")
    score.set_defaults(do=score_images)

    classify = kinds.add_parser(
        "classify",
        parents=[shared, images],
        help="the most probable class of images",
        description="The most probable class of each image by Bayes' rule, all classes alike before. It needs a run "
        "with one model a class (classes: each in its recipe).",
    )
    classify.set_defaults(do=classify_images, label=None)
    return parser


def sample_images(trained: TrainedRun, arguments: argparse.Namespace) -> None:
    """Draw images and write them; with one model for each class, one row for each class."""
    out: Path = arguments.out
    if out.suffix not in (".png", ".npy", ".npz"):
        raise UserError(f"--out {out}: the name must end in .png, .npy or .npz")
    models, count, batch = _models(trained, arguments.label), arguments.count, arguments.batch
    shares = [len(part) for part in np.array_split(range(count), len(models.names))]
    parts = [
        (name, min(batch, share - start))
        for name, share in zip(models.names, shares, strict=True)
        for start in range(0, share, batch)
    ]
    noise = generator("use sample", arguments.seed)
    drawn: list[Bytes] = []
    with Progress(f"sampling {trained.name}", len(parts)) as progress:
        for name, size in parts:
            samples = models.sample(name, size, noise, temperature=arguments.temperature)
            drawn.append(samples.cpu().numpy()[:, 0])
            progress.step(f"{sum(map(len, drawn))} of {count} images")
    images = np.concatenate(drawn)
    with replacing(out) as temporary:
        if out.suffix == ".png":
            write_grid(temporary, grid_of(images, shares))
        elif out.suffix == ".npy":
            np.save(temporary, images, allow_pickle=False)
        else:
            np.savez_compressed(temporary, images=images)
    say(f"{count} samples of {trained.name} at temperature {arguments.temperature:g}, in {out}")


def grid_of(images: Bytes, shares: Sequence[int]) -> Bytes:
    """Images as a grid (rows, columns, H, W), padded with grey: a row for each share, or about square for one share."""
    side = math.isqrt(len(images) - 1) + 1
    rows = shares if len(shares) > 1 else [side] * (len(images) // side) + [len(images) % side]
    has_image = np.arange(max(rows)) < np.array([row for row in rows if row])[:, None]
    grid = np.full((*has_image.shape, *images.shape[1:]), 128, dtype=np.uint8)
    grid[has_image] = images
    return grid


def score_images(trained: TrainedRun, arguments: argparse.Namespace) -> None:
    """Score images, print the mean, and write a row for each."""
    names, scores = _scores(trained, ClassFlows.mixture_bits_per_dim, arguments)
    bits = scores.numpy()
    error = f" +- {bits.std(ddof=1) / math.sqrt(len(bits)):.4f} (standard error)" if len(bits) > 1 else ""
    say(f"{trained.name}: mean {bits.mean():.4f}{error}, median {np.median(bits):.4f} bits/dim of {len(bits)} images")
    _write(arguments.out, {"image": names, "bits_per_dim": [f"{value:.6f}" for value in bits]})


def classify_images(trained: TrainedRun, arguments: argparse.Namespace) -> None:
    """Classify images, print how many each class has, and write a row for each."""
    if not trained.per_class:
        raise UserError(
            f"{trained.name} has one model for all classes, so it cannot tell them apart; classify needs a run of a "
            "recipe with classes: each"
        )
    names, posterior = _scores(trained, ClassFlows.posterior, arguments)
    probabilities, predicted = (part.tolist() for part in posterior.max(1))
    titles = _titles(trained)
    for index, title in enumerate(titles.values()):
        say(f"{title}: {predicted.count(index)} of {len(predicted)}")
    labels = [[*titles][index] for index in predicted]
    columns = {"image": names, "class": labels, "class_name": [titles[label] for label in labels]}
    _write(arguments.out, columns | {"probability": [f"{probability:.6f}" for probability in probabilities]})


def _scores(trained: TrainedRun, method: Scores, arguments: argparse.Namespace) -> tuple[list[str], Tensor]:
    """The names of the images that the command line names, and their scores by a method of the models."""
    images, names = read_pictures(arguments.images, arguments.array)
    models = _models(trained, arguments.label)
    _, *shape = models[models.names[0]].shape
    if [*images.shape[1:]] != shape:
        sizes = [f"{width}x{height}" for height, width in (images.shape[1:], shape)]
        raise UserError(f"{arguments.images} has images of {sizes[0]} pixels; {trained.name} takes {sizes[1]}")
    noise = generator("use score", arguments.seed)
    batches = torch.from_numpy(images).split(arguments.batch)
    scores: list[Tensor] = []
    with Progress(f"scoring {len(images)} images", len(batches)) as progress:
        for batch in batches:
            scores.append(method(models, batch.to(models.device), arguments.draws, noise).cpu())
            progress.step(f"{sum(map(len, scores))} of {len(images)} images")
    return names, torch.cat(scores)


def _models(trained: TrainedRun, label: str | None) -> ClassFlows:
    """The model of the class with the given number or name, or those of all classes."""
    if label is None:
        return ClassFlows(trained.models)
    if not trained.per_class:
        raise UserError(f"--class {label}: {trained.name} has one model for all classes; leave --class out")
    titles = _titles(trained)
    for name, model in trained.models.items():
        if label in (name, titles[name]):
            return ClassFlows({name: model})
    raise UserError(f"--class {label}: {trained.name} has no such class; it has: {', '.join(titles.values())}")


def _titles(trained: TrainedRun) -> dict[str, str]:
    """The names of the classes for readers, by the names of their models; without the data set, the latter."""
    try:
        titles = read_json(Path("data", trained.record.dataset, DESCRIPTION))["class_names"]
        by_label = {str(label): str(title) for label, title in enumerate(titles)}
    except (UserError, LookupError, TypeError):
        by_label = {}
    return {name: by_label.get(name, name) for name in trained.models}


def _write(out: Path | None, columns: Mapping[str, Sequence[str]]) -> None:
    """Write a CSV file if ``out`` is given."""
    if out is not None:
        with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *zip(*columns.values(), strict=True)])
        say(f"a row for each image in {out}")


def _number(least: int, most: int, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """A parser of numbers, whole ones unless ``kind`` is float, within bounds."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= (value := kind(text)) <= most:
                return value
        whole = "whole " if kind is int else ""
        raise argparse.ArgumentTypeError(f"{text!r}: a {whole}number from {least} to {most} is wanted")

    return read


if __name__ == "__main__":
    exit_with(main)
