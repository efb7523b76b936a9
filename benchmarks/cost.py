"""Draws the cost of an LU-Net against width, batch and number of layers: python -m benchmarks.cost --help."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator
from tqdm import tqdm

from benchmarks.__main__ import make_call
from benchmarks.contestants import from_flow
from lunet import LUNet
from pipeline.core.environment import describe_environment, keep_freed_memory
from pipeline.measuring.stopwatch import clock
from pipeline.page.published_tables import WORKS
from pipeline.results.figures import figure
from pipeline.results.looks import FALLBACK_COLOURS, INK, Look

FEATURES, LAYERS, BATCH = 784, 4, 256
AXES = {
    "features": [64, 128, 256, 512, 784, 1024, 2048, 4096],
    "batch": [1, 4, 16, 64, 256, 1024, 4096],
    "layers": [2, 4, 8, 16, 32],
}
STYLES = {
    work: Look(label, colour, marker)
    for (work, label), colour, marker in zip(WORKS.items(), FALLBACK_COLOURS[1:4], "os^", strict=True)
}
POWERS = {"²": 2, "³": 3}
MIB = 2**20


def main() -> None:
    """Measure and draw what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description="Time steps, log-densities and samples of an LU-Net against batch, width and number of layers, and "
        "weigh its training; one of them varies, the others are 784 features, 4 layers, batch 256. On a CPU.",
    )
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--note", help="what a reader must know of these times, kept with the environment")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="default: %(default)s")
    parser.add_argument(
        "--redraw", type=Path, metavar="FOLDER", help="measure nothing; draw again what a folder's CSV files say"
    )
    arguments = parser.parse_args()
    if folder := arguments.redraw:
        draw(pd.read_csv(folder / "cost_times.csv"), pd.read_csv(folder / "cost_memory.csv"), folder)
        return
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    settings = [(axis, value) for axis, values in AXES.items() for value in values]
    # Memory first: a process inherits the peak of the process that starts it.
    memory = pd.DataFrame(
        measure_memory(axis, value, reversible=reversible)
        for axis, value in tqdm([pair for pair in settings if pair[0] != "features"], desc="memory")
        for reversible in (False, True)
    )
    times = pd.DataFrame(
        row for axis, value in tqdm(settings, desc="times") for row in take_times(axis, value, arguments.rounds)
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    times.to_csv(arguments.out / "cost_times.csv", index=False, float_format="%.5g")
    memory.to_csv(arguments.out / "cost_memory.csv", index=False, float_format="%.5g")
    environment = dict(describe_environment(torch.device("cpu"))) | {"note": arguments.note}
    pd.Series(environment).to_csv(arguments.out / "cost_environment.csv", header=False)
    draw(times, memory, arguments.out)
    print(f"written to {arguments.out}")


def sizes(axis: str, value: int) -> tuple[int, int, int]:
    """Features, layers and batch: the default values, with ``value`` for the one that ``axis`` names."""
    values = {"features": FEATURES, "layers": LAYERS, "batch": BATCH} | {axis: value}
    return values["features"], values["layers"], values["batch"]


def take_times(axis: str, value: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the milliseconds of each work, with a lower bound and the time of a determinant by elimination.

    With one thread, the times are CPU times, which other jobs on the machine hardly affect. ``floor_ms`` is the
    arithmetic of both triangles, three times for a step, at the speed of a dense product measured in the same round.
    """
    features, layers, batch = sizes(axis, value)
    torch.manual_seed(0)
    x, matrix = torch.randn(batch, features), torch.randn(features, features)
    trained, evaluated = (from_flow(LUNet(features, layers)) for _ in range(2))
    calls = {work: make_call(trained if work == "step" else evaluated, work, x) for work in WORKS}
    one_thread = torch.get_num_threads() == 1

    def milliseconds(call: Callable[[], object]) -> float:
        return clock(call, None)[one_thread]

    for call in calls.values():
        call()
    for number in range(rounds):
        product_ms = milliseconds(partial(torch.mm, x, matrix))
        slogdet_ms = milliseconds(partial(torch.linalg.slogdet, matrix)) if axis == "features" else None
        for work, call in calls.items():
            yield {
                "axis": axis, "value": value, "work": work, "round": number, "ms": milliseconds(call),
                "floor_ms": layers * product_ms * (3 if work == "step" else 1), "slogdet_ms": slogdet_ms,
                "clock": "cpu" if one_thread else "wall",
            }  # fmt: skip


def measure_memory(axis: str, value: int, *, reversible: bool) -> dict[str, Any]:
    """The MiB that training steps add to a new process, and a lower bound.

    The bound counts parameters, gradients, Adam's two averages, and the activations that the gradient needs: three
    values for each feature, row and layer; with ``reversible``, those of one layer only.
    """
    features, layers, batch = sizes(axis, value)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        growth = pool.apply(_memory_growth_mib, (features, layers, batch, reversible))
    parameters = layers * (features**2 + features)
    activations = 3 * batch * features * (1 if reversible else layers)
    floor = 4 * (4 * parameters + activations) / MIB
    return {"axis": axis, "value": value, "reversible": reversible, "mib": growth, "floor_mib": floor}


def _memory_growth_mib(features: int, layers: int, batch: int, reversible: bool) -> float:  # noqa: FBT001
    torch.set_num_threads(1)
    # The first step loads parts of torch, which do not count.
    make_call(from_flow(LUNet(16)), "step", torch.randn(batch, 16))()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flow = LUNet(features, layers)
    flow.reversible = reversible
    step = make_call(from_flow(flow), "step", torch.randn(batch, features))
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def draw(times: pd.DataFrame, memory: pd.DataFrame, folder: Path) -> None:
    """Draw times against each axis, and memory against batch and layers, as `cost-*.svg` in the page's colours."""
    for axis, group in times.groupby("axis", sort=False):
        with _figure(folder / f"cost-{axis}.svg", str(axis), "milliseconds") as axes:
            for work, style in STYLES.items():
                median = group[group["work"] == work].groupby("value")[["ms", "floor_ms", "slogdet_ms"]].median()
                axes.plot(median.index, median["ms"], f"{style.marker}-", color=style.colour, label=style.label)
                if work != "sample":
                    axes.plot(median.index, median["floor_ms"], ":", color=style.colour, label="at least")
            if axis == "features":
                axes.plot(median.index, median["slogdet_ms"], "--", color=INK, label="slogdet of a dense matrix")
                axes.set_ylim(bottom=median["slogdet_ms"].min() / 3)
                steps, slogdet = group[group["work"] == "step"].groupby("value")["ms"].median(), median["slogdet_ms"]
                # Each line shows the slope of a curve and ends at its right end; the first is raised to be visible.
                for power, end, dashes in (
                    ("²", 2 * steps.iloc[-1], (0, (1, 4))),
                    ("³", slogdet.iloc[-1], (0, (5, 4))),
                ):
                    line = end * (median.index.to_numpy(dtype=float) / median.index[-1]) ** POWERS[power]
                    axes.plot(median.index, line, color=INK, alpha=0.4, ls=dashes, label=f"O(D{power})")
    for axis, group in memory.groupby("axis", sort=False):
        with _figure(folder / f"cost-memory-{axis}.svg", str(axis), "MiB in training") as axes:
            for reversible, label, marker in ((False, "plain", "o"), (True, "reversible", "^")):
                chosen, colour = group[group["reversible"] == reversible], FALLBACK_COLOURS[1 + reversible]
                axes.plot(chosen["value"], chosen["mib"], f"{marker}-", color=colour, label=label)
                axes.plot(chosen["value"], chosen["floor_mib"], ":", color=colour, label="at least")


@contextmanager
def _figure(path: Path, axis: str, unit: str) -> Iterator[Axes]:
    """Logarithmic axes with a legend below them."""
    with figure(path, 3.4) as [axes]:
        yield axes
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel=unit)
        axes.set_xticks(AXES[axis], [f"{value:,}" for value in AXES[axis]])
        axes.minorticks_off()
        axes.tick_params(axis="x", labelrotation=45)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.figure.legend(loc="outside lower center", ncols=3)


if __name__ == "__main__":
    main()
