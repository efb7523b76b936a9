"""Computes the test bits/dim of trained LU-Nets and Gaussians again from their weights, with numpy alone.

Nothing of `lunet` or `pipeline` is used, so that an error in their formulae cannot hide here too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float64]
ERRORS = 5  # standard errors that noise may explain


@dataclass(frozen=True)
class Model:
    """A trained model: its kind, weights, leaky slope (of an LU-Net), and the margins of its logit at 0 and 1."""

    kind: str
    weights: dict[str, Array]
    slope: float
    margin: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """The test bits/dim of a run as its evaluation has it, and as computed again; the draws of noise behind each."""

    run: str
    evaluated: float
    evaluated_draws: int
    recomputed: float
    recomputed_draws: int
    noise: float  # standard deviation of the mean over all test images from draw to draw

    @property
    def allowed(self) -> float:
        """Five standard errors of the difference of two means over independent draws of the noise."""
        return ERRORS * self.noise * float(np.sqrt(1 / self.evaluated_draws + 1 / self.recomputed_draws))

    @property
    def agrees(self) -> bool:
        """Whether noise explains the difference."""
        return abs(self.recomputed - self.evaluated) <= self.allowed

    def __str__(self) -> str:
        return (
            f"{self.run}: evaluated {self.evaluated:.5f}, computed again {self.recomputed:.5f} bits/dim, difference "
            f"{self.recomputed - self.evaluated:+.5f}, noise explains up to {self.allowed:.5f}: "
            + ("agrees" if self.agrees else "DIFFERS")
        )


def log_density_of_pixels(model: Model, images: NDArray[np.uint8], noise: Array) -> Array:
    r"""The log-density in nats of dequantised images :math:`x + u` under a model, with shape (N,).

    The chain is :math:`v = (x + u) / 256`, :math:`p = a + (1 - a - b) v` with margins a and b,
    :math:`y = \ln p - \ln(1 - p)`, then the flow to standard normal latents. Each map adds its log-derivative.

    Args:
        model: The model.
        images: The images, with shape (N, D).
        noise: The noise u between 0 and 1, with shape (N, D).
    """
    features, (low, high) = images.shape[1], model.margin
    share = 1 - low - high
    p = low + share * (images + noise) / 256
    y = np.log(p) - np.log1p(-p)
    log_derivative = -np.log(256) + np.log(share) - np.log(p) - np.log1p(-p)
    z, log_det = lu_net(model, y) if model.kind == "lunet" else gaussian(model, y)
    log_normal = -0.5 * (z**2).sum(1) - 0.5 * features * np.log(2 * np.pi)
    density: Array = log_normal + log_det + log_derivative.sum(1)
    return density


def lu_net(model: Model, y: Array) -> tuple[Array, Array]:
    r"""Latents and log-determinants of layers :math:`\phi(L U x + b)`, the last without :math:`\phi`.

    The derivative of :math:`\phi(x) = a x + (1 - a) \ln(1 + e^x)` is :math:`a + (1 - a) / (1 + e^{-x})`.
    """
    a, layers = model.slope, sum(name.endswith(".lu") for name in model.weights)
    log_det = np.zeros(len(y))
    for layer in range(layers):
        both, bias = model.weights[f"layers.{layer}.lu"], model.weights[f"layers.{layer}.bias"]
        L, U = np.tril(both, -1) + np.eye(len(both)), np.triu(both)
        y = (y @ U.T) @ L.T + bias
        log_det += np.log(np.abs(np.diag(U))).sum()
        if layer < layers - 1:
            # 1 / (1 + e^-x) without overflow
            log_det += np.log(a + (1 - a) * np.exp(-np.logaddexp(0, -y))).sum(1)
            y = a * y + (1 - a) * np.logaddexp(0, y)
    return y, log_det


def gaussian(model: Model, y: Array) -> tuple[Array, Array]:
    r"""Latents :math:`W (x - \mu)` and log-determinants, with lower triangular :math:`W`."""
    W = np.tril(model.weights["whitening"])
    return (y - model.weights["mean"]) @ W.T, np.full(len(y), np.log(np.diag(W)).sum())


def is_known(config: dict[str, Any]) -> bool:
    """Whether the configuration of a saved model is that of a Gaussian or an LU-Net with leaky softplus."""
    flow = config["flow"]
    is_lu_net = config["kind"] == "lunet" and flow["activation"]["kind"] == "LeakySoftplus" and not flow["leading"]
    return is_lu_net or config["kind"] == "gaussian"


def load_model(folder: Path) -> Model:
    """The model in a folder of a trained run."""
    config = read(folder / "config.json")
    weights = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "weights.safetensors").items()}
    low, high = config["image"]["margin"]
    slope = config["flow"]["activation"]["slope"] if config["kind"] == "lunet" else 1.0
    return Model(config["kind"], weights, slope, (low, high))


def read(path: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def compare(runs: Path, data: Path, run: str, draws: int, random: np.random.Generator) -> Comparison:
    """Compute the test bits/dim of a run again, the mean of ``draws`` single-draw bounds, each image by its model."""
    evaluation = read(runs / f"evaluate/{run}.json")
    folder = data / evaluation["dataset"]
    images, labels = np.load(folder / "test_images.npy"), np.load(folder / "test_labels.npy")
    images = images.reshape(len(images), -1)
    bits = np.full((draws, len(images)), np.nan)
    for path in sorted((runs / "train" / run / "flows").iterdir()):
        model = load_model(path)
        rows = np.flatnonzero(np.full(len(images), fill_value=True) if path.name == "all" else labels == int(path.name))
        for part in np.array_split(rows, -(-len(rows) // 1000)):
            for draw in range(draws):
                noise = random.random((len(part), images.shape[1]))
                density = log_density_of_pixels(model, images[part], noise)
                bits[draw, part] = -density / (images.shape[1] * np.log(2))
    return Comparison(
        run,
        evaluation["test"]["bits_per_dim"]["mean"],
        evaluation["draws"],
        float(bits.mean()),
        draws,
        float(np.sqrt(bits.var(0, ddof=1).mean() / len(images))),
    )


def comparisons(runs: Path, data: Path, draws: int, random: np.random.Generator) -> Iterator[Comparison]:
    """The comparison of each complete run of a Gaussian or an LU-Net with leaky softplus, both after a logit."""
    for path in sorted(runs.glob("evaluate/*.json")):
        models = [*(runs / "train" / path.stem / "flows").glob("*/config.json")]
        if read(path)["status"] == "complete" and models and all(is_known(read(model)) for model in models):
            yield compare(runs, data, path.stem, draws, random)


def main() -> None:
    """Compare as the command line asks; the status is 1 if a figure differs or there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.independent",
        description="Compute the test bits/dim of the trained LU-Nets and Gaussians in runs/ again from their weights, "
        "with numpy alone and noise of its own, and compare them with the evaluations. A difference must be within "
        "five standard errors of the noise. Some ten seconds a draw for each LU-Net on 10,000 images.",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument("--draws", type=int, default=2, help="of the noise, at least 2; default: %(default)s")
    parser.add_argument("--seed", type=int, help="of the noise; default: another each time")
    arguments = parser.parse_args()
    if arguments.draws < 2:
        parser.error(f"--draws {arguments.draws}: the size of the noise shows in 2 draws or more")
    random = np.random.default_rng(arguments.seed)
    done = []
    for comparison in comparisons(arguments.runs, arguments.data, arguments.draws, random):
        print(comparison, flush=True)
        done.append(comparison)
    if not done:
        raise SystemExit(f"{arguments.runs} has no evaluated LU-Net or Gaussian; run: dvc repro")
    if failed := [comparison.run for comparison in done if not comparison.agrees]:
        raise SystemExit(f"{len(failed)} of {len(done)} differ by more than noise: {', '.join(failed)}")


if __name__ == "__main__":
    main()
