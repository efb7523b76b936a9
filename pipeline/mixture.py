"""The mixture stage: the paper's experiment in two dimensions, an LU-Net on points of a mixture of four Gaussians.

The mixture's density is known, and so is its entropy, a lower bound of every model's expected negative log-likelihood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, xlogy
from torch import Tensor

from lunet import Flow, Gaussian, LUNet
from pipeline.core.console import command_parser, exit_with, say
from pipeline.core.environment import describe_environment
from pipeline.core.files import replacing, sha256, write_json
from pipeline.core.params import Mixture as Settings
from pipeline.core.params import load_params
from pipeline.core.record import Status
from pipeline.core.streams import generator, stream_seed
from pipeline.results.mixture_record import Interval, Mixture, MixtureModel
from pipeline.results.statistics import mean_interval

# As released: scikit-learn's make_blobs with 4 centres between -10 and 10 and random_state 1.
CENTRES = ((-1.65955991, 4.40648987), (-9.9977125, -3.95334855), (-7.06488218, -8.1532281), (-6.27479577, -3.08878546))
STD = 0.2
# The figure that the released program prints, in nats, with ln(pi) where ln(2 pi) is correct.
PRINTED = 0.900
HOLDOUT = 0.1
CHECK_EVERY = 20  # steps
MARGIN, SPACING = 3.0, 0.1  # of the grid of densities around the centres
SHOWN = 200  # test points
Array = NDArray[np.float64]


class DivergedError(Exception):
    """The likelihood of a fit is no longer finite."""


def main() -> None:
    """Run the experiment that the command line names."""
    parser = command_parser(
        "mixture",
        "Fit an LU-Net and a Gaussian to points of a mixture of four Gaussians in two dimensions. Writes "
        "a JSON file and, beside it, the densities on a grid as .npy.",
        example="--out runs/mixture.json",
    )
    parser.add_argument("--out", required=True, type=Path, help="the JSON file to write")
    arguments = parser.parse_args()
    # The tensors are small: more threads would only wait for each other.
    torch.set_num_threads(1)
    result = experiment(load_params(arguments.params).mixture, arguments.out.with_suffix(".npy"))
    write_json(arguments.out, result.model_dump(mode="json"), sealed=True)
    nats = f", {result.models['lunet'].nats.mean:.4f} nats" if "lunet" in result.models else ""
    say(f"mixture: {result.status}{nats}, entropy {result.entropy:.4f}, written to {arguments.out}")


def experiment(settings: Settings, grid: Path) -> Mixture:
    """Fit both models and compare them with the mixture on separate test points; a diverged LU-Net is left out.

    Writes the log-densities of mixture and models to ``grid``, float32 with shape (models, rows, columns), in ascending
    order of the coordinates.
    """
    train = draw(settings.train_points, stream_seed("mixture training", settings.random_seed))
    test = draw(settings.test_points, stream_seed("mixture test", settings.random_seed))
    log_probs: dict[str, Callable[[Array], Array]] = {"truth": log_density}
    status: Status = "complete"
    message = None
    begin = time.perf_counter()
    try:
        log_probs["lunet"] = partial(_log_prob, fit(torch.from_numpy(train), settings))
    except DivergedError as error:
        status, message = "diverged", str(error)
    seconds = time.perf_counter() - begin
    log_probs["gaussian"] = partial(_log_prob, Gaussian(2).double().fit_(torch.from_numpy(train)).eval())
    points = grid_points(MARGIN, SPACING)
    densities = [log_prob(points.reshape(-1, 2)).reshape(points.shape[:2]) for log_prob in log_probs.values()]
    with replacing(grid) as temporary:
        np.save(temporary, np.stack(densities).astype(np.float32), allow_pickle=False)
    truth = -log_density(test)
    nats = {name: -log_prob(test) for name, log_prob in log_probs.items()}
    return Mixture(
        status=status,
        message=message,
        settings=settings.model_dump(mode="json"),
        seconds=round(seconds, 3),
        centres=list(CENTRES),
        std=STD,
        entropy=entropy(),
        printed=PRINTED,
        printed_honest=PRINTED + math.log(2),
        models={
            name: MixtureModel(nats=_interval(values), above_truth=_interval(values - truth))
            for name, values in nats.items()
        },
        box=[float(points[end, end, axis]) for axis in (0, 1) for end in (0, -1)],
        points=test[:SHOWN].round(4).tolist(),
        densities=list(log_probs),
        densities_sha256=sha256(grid),
        environment=describe_environment(torch.device("cpu")),
    )


def draw(n: int, seed: int) -> Array:
    """Points of the mixture, with shape (n, 2)."""
    random = np.random.default_rng(seed)
    return np.array(CENTRES)[random.integers(len(CENTRES), size=n)] + STD * random.standard_normal((n, 2))


def log_density(x: Array) -> Array:
    """The mixture's log-density in nats at points (N, 2), with shape (N,)."""
    squared = np.square((x[:, None] - np.array(CENTRES)) / STD).sum(2)
    log_densities: Array = logsumexp(-squared / 2, axis=1) - math.log(2 * math.pi * STD**2 * len(CENTRES))
    return log_densities


def entropy() -> float:
    """The mixture's entropy in nats, by the trapezoidal rule, which is exact here up to rounding."""
    step = STD / 5
    density = np.exp(log_density(grid_points(8 * STD, step).reshape(-1, 2)))
    return float(-xlogy(density, density).sum() * step**2)


def grid_points(margin: float, spacing: float) -> Array:
    """The points of a grid that extends ``margin`` beyond the centres, with shape (rows, columns, 2)."""
    x, y = (np.arange(min(side) - margin, max(side) + margin, spacing) for side in zip(*CENTRES, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1)


def fit(points: Tensor, settings: Settings) -> LUNet:
    """Fit LU-Nets to points (N, 2) by maximum likelihood from several random initialisations, and return the best.

    All are trained at once, as one LU-Net of all their features whose triangles are zero between different LU-Nets, so
    that many take hardly longer than one. The initialisations are uniform, as released; with large steps some of them
    find all four centres. Held-out points decide which LU-Net is the best.

    Raises:
        DivergedError: If a likelihood is not finite.
    """
    stream = generator("mixture fit", settings.random_seed)
    order = torch.randperm(len(points), generator=stream)
    holdout_size = max(1, round(HOLDOUT * len(points)))
    train, holdout = points[order[holdout_size:]], points[order[:holdout_size]]
    flows = [LUNet(2, settings.layers, settings.slope).double().uniform_(stream) for _ in range(settings.starts)]
    joined = side_by_side(flows).train()
    optimizer = torch.optim.Adam(joined.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps + 1, pct_start=0.1, cycle_momentum=False
    )
    for step in range(1, settings.steps + 1):
        batch = train[torch.randint(len(train), (settings.batch_size,), generator=stream)]
        # The sum over the LU-Nets, whose gradients are independent.
        loss = -joined.log_prob(batch.repeat(1, settings.starts)).mean()
        optimizer.zero_grad()
        loss.backward()
        keep_apart_(joined, settings.clip_norm)
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY in (0, settings.steps) and not loss.isfinite():
            raise DivergedError(f"the training loss is {float(loss.detach())} after step {step}")
    flows = one_by_one(joined, settings.starts)
    with torch.no_grad():
        scores = torch.stack([flow.train().log_prob(holdout).mean() for flow in flows])
    if not scores.isfinite().all():
        raise DivergedError(f"held-out points have log-likelihoods of {scores.min()} after step {settings.steps}")
    return flows[int(scores.argmax())].eval()


def side_by_side(flows: Sequence[LUNet]) -> LUNet:
    """Join LU-Nets of one architecture into a single one that maps the features of each as before."""
    states = [flow.state_dict() for flow in flows]
    joined = LUNet(**flows[0].config() | {"features": sum(flow.features for flow in flows)}).double()
    joined.load_state_dict({
        name: torch.block_diag(*values) if values[0].dim() == 2 else torch.cat(values)
        for name, *values in zip(states[0], *(state.values() for state in states), strict=True)
    })  # fmt: skip
    return joined


def one_by_one(joined: LUNet, n: int) -> list[LUNet]:
    """Separate the ``n`` LU-Nets of two features that `side_by_side` joined."""
    flows, state = [LUNet(**joined.config() | {"features": 2}).double() for _ in range(n)], joined.state_dict()
    for index, flow in enumerate(flows):
        at = slice(2 * index, 2 * index + 2)
        flow.load_state_dict({name: x[at, at] if x.dim() == 2 else x[at] for name, x in state.items()})
    return flows


def keep_apart_(joined: LUNet, limit: float) -> None:
    """Zero the gradients between different LU-Nets of two features, and clip the gradient norm of each to ``limit``."""
    triangles = torch.stack([_gradient(layer.lu) for layer in joined.layers])
    biases = torch.stack([_gradient(layer.bias) for layer in joined.layers]).unflatten(1, (-1, 2))
    blocks = triangles.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).diagonal(dim1=1, dim2=3)
    squares = blocks.square().sum((0, 1, 2)) + biases.square().sum((0, 2))
    share = (limit / squares.sqrt()).clamp(max=1)
    scales = torch.block_diag(*share[:, None, None].expand(-1, 2, 2))
    for layer in joined.layers:
        _gradient(layer.lu).mul_(scales)
        _gradient(layer.bias).mul_(share.repeat_interleave(2))


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@torch.no_grad()
def _log_prob(model: Flow, x: Array) -> Array:
    log_prob: Array = model.log_prob(torch.from_numpy(x)).numpy()
    return log_prob


def _interval(values: Array) -> Interval:
    estimate = mean_interval(values.tolist())
    return Interval(mean=estimate.value, ci_low=estimate.low, ci_high=estimate.high, n=estimate.n)


if __name__ == "__main__":
    exit_with(main)
