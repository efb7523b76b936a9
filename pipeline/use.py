"""Uses a trained run: draws samples, scores images, and classifies them."""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lunet import ClassFlows, ImageFlow, NonFiniteError, SavedFlowError, load_flow
from pipeline.core.console import UserError, exit_with, say
from pipeline.core.dataset import DESCRIPTION, Bytes
from pipeline.core.environment import keep_freed_memory
from pipeline.core.files import read_json, replacing, write_text
from pipeline.core.progress import Progress
from pipeline.sources.image_files import read_pictures

EXAMPLES = """examples:
  python -m pipeline.use runs/train/mnist-lunet-0 sample --count 64 --out samples.png
  python -m pipeline.use runs/train/mnist-lunet-0 score images.npz --out scores.csv
  python -m pipeline.use runs/train/mnist-lunet_released-0 classify folder/of/pngs

RUN is a folder that the train stage wrote: runs/train/<data set>-<recipe>-<seed>."""
IMAGES = (
    "a .npz, .npy, IDX (plain or .gz) or .png file, or a folder with .png files: 8-bit grey images of the size that "
    "the run was trained on"
)


@dataclass(frozen=True)
class Trained:
    """A trained run: its models by class, or one named "all"; ``titles`` are the names of the classes for readers."""

    name: str
    models: ClassFlows
    titles: dict[str, str]
    device: torch.device

    @property
    def per_class(self) -> bool:
        """Whether there is one model for each class."""
        return self.models.names != ("all",)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.models[self.models.names[0]].shape[1:]


def main() -> None:
    """Run the command that the command line names."""
    arguments = _parser().parse_args()
    keep_freed_memory()
    trained = load_run(arguments.run, choose(arguments.device))
    try:
        with torch.no_grad():
            arguments.do(trained, arguments)
    except NonFiniteError as error:
        raise UserError(f"the model of {trained.name} fails: {error}") from None


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.use",
        description="Use the model of a trained run: draw samples, score images in bits per pixel, or classify them.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a trained run")
    kinds = parser.add_subparsers(required=True, metavar="{sample,score,classify}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=_whole(0, 2**63 - 1), default=0, help="of all noise (default: %(default)s)")
    shared.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is")
    shared.add_argument("--batch", type=_whole(1, 100_000), default=128, help="images at once (default: %(default)s)")
    images = argparse.ArgumentParser(add_help=False)
    images.add_argument("images", type=Path, metavar="IMAGES", help=IMAGES)
    images.add_argument("--array", help="which array of a .npz file (default: images, test_images, or the only one)")
    images.add_argument("--draws", type=_whole(1, 10_000), default=1, help="of dequantisation noise, averaged (1)")
    images.add_argument("--out", type=Path, help="write a row for each image into this CSV file")

    sample = kinds.add_parser("sample", parents=[shared], help="draw images from the model")
    sample.add_argument("--count", type=_whole(1, 100_000), default=64, help="how many (default: %(default)s)")
    sample.add_argument(
        "--out", type=Path, default=Path("samples.png"), help="a .png file with all in a grid, or .npy or .npz with "
        "the array (default: %(default)s)"
    )  # fmt: skip
    sample.add_argument("--temperature", type=_temperature, default=1.0, help="below 1: nearer to the middle (1)")
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
    classify.set_defaults(do=classify_images)
    return parser


def choose(device: str) -> torch.device:
    """The requested device; ``auto`` is a GPU if one is available, else the CPU."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("--device cuda: no CUDA GPU is here; give cpu or auto")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def load_run(folder: Path, device: torch.device, data: Path = Path("data")) -> Trained:
    """Load the models of a trained run.

    Args:
        folder: The output folder of the train stage.
        device: The device of the models.
        data: The folder of the data sets, which have the names of the classes.

    Raises:
        UserError: If there is no such run, its training failed, or its weights are damaged.
    """
    if not (folder / "run.json").is_file():
        runs = sorted(path.parent.name for path in folder.parent.glob("*/run.json"))
        known = f"; {folder.parent} has: {', '.join(runs)}" if runs else "; train one with: dvc repro"
        raise UserError(f"{folder} is not a trained run, it has no run.json{known}")
    run = read_json(folder / "run.json")
    try:
        status, message, names, dataset = run["status"], run["message"], list(run["models"]), run["dataset"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'run.json'} is not of a trained run, it lacks {error}") from None
    if status != "complete":
        raise UserError(f"{folder} has no model to use: its training is {status.replace('_', ' ')}: {message}")
    flows: dict[str, ImageFlow] = {}
    try:
        for name in names:
            flows[name] = load_flow(folder / "flows" / name, device)
    except SavedFlowError as error:
        raise UserError(f"{error}; train it again with: dvc repro -f -s train") from None
    return Trained(folder.name, ClassFlows(flows), _titles(data / str(dataset) / DESCRIPTION, names), device)


def sample_images(trained: Trained, arguments: argparse.Namespace) -> None:
    """Draw images and write them; with one model for each class, one row for each class."""
    out: Path = arguments.out
    if out.suffix not in (".png", ".npy", ".npz"):
        raise UserError(f"--out {out}: the name must end in .png, .npy or .npz")
    labels, count, batch = _labels(trained, arguments.label), arguments.count, arguments.batch
    shares = [count // len(labels) + (index < count % len(labels)) for index in range(len(labels))]
    parts = [
        (label, min(batch, share - start))
        for label, share in zip(labels, shares, strict=True)
        for start in range(0, share, batch)
    ]
    generator = torch.Generator().manual_seed(arguments.seed)
    drawn: list[Bytes] = []
    with Progress(f"sampling {trained.name}", len(parts)) as progress:
        for label, size in parts:
            samples = trained.models.sample(label, size, generator, temperature=arguments.temperature)
            drawn.append(samples.cpu().numpy()[:, 0])
            progress.step(f"{sum(map(len, drawn))} of {count} images")
    images = np.concatenate(drawn)
    with replacing(out) as temporary:
        if out.suffix == ".png":
            from pipeline.results.image_grid import write_grid

            write_grid(temporary, grid_of(images, shares))
        elif out.suffix == ".npy":
            np.save(temporary, images, allow_pickle=False)
        else:
            np.savez_compressed(temporary, images=images)
    say(f"{count} samples of {trained.name} at temperature {arguments.temperature:g}, in {out}")


def grid_of(images: Bytes, shares: Sequence[int]) -> Bytes:
    """Images as a grid (rows, columns, H, W), padded with grey: a row for each share, or about square for one share."""
    columns = max(shares) if len(shares) > 1 else math.isqrt(len(images) - 1) + 1
    widths = [share for share in shares if share]
    if len(shares) == 1:
        widths = [min(columns, len(images) - start) for start in range(0, len(images), columns)]
    grid = np.full((len(widths), columns, *images.shape[1:]), 128, dtype=np.uint8)
    for row, row_images in enumerate(np.split(images, np.cumsum(widths)[:-1])):
        grid[row, : len(row_images)] = row_images
    return grid


def score_images(trained: Trained, arguments: argparse.Namespace) -> None:
    """Score images, print the mean, and write a row for each."""
    images, names = _images(trained, arguments)
    bits = mixture_bits(_bits(trained, _labels(trained, arguments.label), images, arguments), images[0].size).numpy()
    error = f" +- {bits.std(ddof=1) / math.sqrt(len(bits)):.4f} (standard error)" if len(bits) > 1 else ""
    say(f"{trained.name}: mean {bits.mean():.4f}{error}, median {np.median(bits):.4f} bits/dim of {len(bits)} images")
    rows = [[name, f"{value:.6f}"] for name, value in zip(names, bits, strict=True)]
    _write(arguments.out, ["image", "bits_per_dim"], rows)


def classify_images(trained: Trained, arguments: argparse.Namespace) -> None:
    """Classify images, print how many each class has, and write a row for each."""
    if not trained.per_class:
        raise UserError(
            f"{trained.name} has one model for all classes, so it cannot tell them apart; classify needs a run of a "
            "recipe with classes: each"
        )
    images, names = _images(trained, arguments)
    labels = trained.models.names
    probabilities = posterior(_bits(trained, labels, images, arguments), images[0].size)
    predicted = probabilities.argmax(1)
    for index, label in enumerate(labels):
        say(f"{trained.titles[label]}: {int((predicted == index).sum())} of {len(predicted)}")
    rows = [
        [name, labels[index], trained.titles[labels[index]], f"{row[index]:.6f}"]
        for name, index, row in zip(names, predicted.tolist(), probabilities.tolist(), strict=True)
    ]
    _write(arguments.out, ["image", "class", "class_name", "probability"], rows)


def mixture_bits(bits: Tensor, pixels: int) -> Tensor:
    """Bits per pixel under a uniform mixture of models, with shape (N,), from those under each model, (N, models)."""
    nats = torch.logsumexp(-bits * pixels * math.log(2), 1) - math.log(bits.shape[1])
    return -nats / (pixels * math.log(2))


def posterior(bits: Tensor, pixels: int) -> Tensor:
    """The probability of each class by Bayes' rule with equal priors, from bits per pixel under each, (N, models)."""
    return torch.softmax(-bits * pixels * math.log(2), 1)


def _bits(trained: Trained, labels: Sequence[str], images: Bytes, arguments: argparse.Namespace) -> Tensor:
    """Bits per pixel of images under the models of the given classes, with shape (N, classes), float64."""
    models = ClassFlows({label: trained.models[label] for label in labels})
    generator = torch.Generator().manual_seed(arguments.seed)
    batches = torch.from_numpy(images).split(arguments.batch)
    bits: list[Tensor] = []
    with Progress(f"scoring {len(images)} images", len(batches)) as progress:
        for batch in batches:
            bits.append(models.bits_per_dim(batch.to(trained.device), arguments.draws, generator).double().cpu())
            progress.step(f"{float(bits[-1].mean()):.3f} bits/dim")
    return torch.cat(bits)


def _labels(trained: Trained, label: str | None) -> tuple[str, ...]:
    """The class with the given number or name, or all classes."""
    if label is None:
        return trained.models.names
    if not trained.per_class:
        raise UserError(f"--class {label}: {trained.name} has one model for all classes; leave --class out")
    matches = [name for name in trained.models.names if label in (name, trained.titles[name])]
    if not matches:
        classes = ", ".join(trained.titles[name] for name in trained.models.names)
        raise UserError(f"--class {label}: {trained.name} has no such class; it has: {classes}")
    return (matches[0],)


def _images(trained: Trained, arguments: argparse.Namespace) -> tuple[Bytes, list[str]]:
    """The images that the command line names; raises a `UserError` if their size is not the model's."""
    images, names = read_pictures(arguments.images, arguments.array)
    if images.shape[1:] != trained.shape:
        height, width = images.shape[1:]
        raise UserError(
            f"{arguments.images} has images of {width}x{height} pixels; {trained.name} takes "
            f"{trained.shape[1]}x{trained.shape[0]}"
        )
    return images, names


def _titles(description: Path, names: Sequence[str]) -> dict[str, str]:
    """The names of the classes for readers, by the names of their models; without the data set, the latter."""
    try:
        classes = dict(enumerate(read_json(description)["class_names"]))
    except (UserError, LookupError, TypeError):
        classes = {}
    return {name: str(classes.get(int(name), name)) if name.isdigit() else name for name in names}


def _write(out: Path | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a CSV file if ``out`` is given."""
    if out is not None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        write_text(out, text.getvalue())
        say(f"a row for each image in {out}")


def _whole(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers within bounds."""

    def read(text: str) -> int:
        value = int(text) if text.isdecimal() else -1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number from {least} to {most} is wanted")
        return value

    return read


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 0 to 100 is wanted")
    return value


if __name__ == "__main__":
    exit_with(main)
