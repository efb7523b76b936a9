"""Times this project's flows and those of other libraries: python -m benchmarks --help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor
from tqdm import tqdm

from benchmarks.contestants import FEATURES, IMAGES, VECTORS, Contestant, available
from lunet import LUNet
from pipeline.core.environment import describe_environment, keep_freed_memory
from pipeline.measuring.stopwatch import clock, rounds
from pipeline.page.published_tables import WORKS
from pipeline.results.statistics import round_significant

WARMUP = 2


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time optimisation steps (forward, backward, fused Adam), log-densities and samples of our flows "
        "and of other libraries': warmed up, synchronised, all of them in turn in each round. Writes every sample, a "
        "table of medians, quartiles and ratios, and a picture. Libraries that are not installed are "
        "left out; make rivals installs them.",
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 256, 6000], help="default: 1 256 6000")
    parser.add_argument("--image-batches", type=int, nargs="+", default=[16], help="of RealNVP and Glow; default: 16")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), help="default: all three")
    parser.add_argument("--rounds", type=int, default=30, help="at most; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=20, help="for a work at a batch, after five rounds; default: 20"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=3,
        help="seconds a call may take; else it is left out, at larger batches too; default: 3",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--note", help="what a reader must know of these times, kept with the environment")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA GPU is here")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    device = torch.device(arguments.device)
    samples = pd.DataFrame(list(measure(arguments, device)))
    environment = dict(describe_environment(device)) | {"note": arguments.note}
    table = summarise(samples)
    arguments.out.mkdir(parents=True, exist_ok=True)
    samples.to_csv(arguments.out / "samples.csv", index=False, float_format="%.5g")
    table.to_csv(arguments.out / "table.csv", index=False, float_format="%.4g")
    pd.Series(environment).to_csv(arguments.out / "environment.csv", header=False)
    for form in ("png", "svg"):
        draw(table, arguments.out / f"times.{form}")
    with pd.option_context("display.width", 160, "display.max_rows", None, "display.float_format", "{:.3g}".format):
        print(table.to_string(index=False))
    print(f"written to {arguments.out}")


def measure(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield every sample: work, batch, model, round, and the wall and CPU milliseconds of one call."""
    threads = torch.get_num_threads()
    for contestants, batches in ((VECTORS, arguments.batches), (IMAGES, arguments.image_batches)):
        names, missing = available(contestants)
        if missing:
            tqdm.write(f"not installed, left out: {', '.join(missing)}; install them with: make rivals")
        for work in arguments.works:
            slow: set[str] = set()
            for batch in sorted(batches):
                calls = {}
                for name in names:
                    if name in slow:
                        continue
                    torch.manual_seed(0)
                    call = make_call(contestants[name][1](), work, torch.randn(batch, FEATURES, device=device))
                    for _ in range(WARMUP):
                        seconds = clock(call, device).wall / 1000
                        if seconds > arguments.patience:
                            tqdm.write(
                                f"{name}, {work} at batch {batch}: {seconds:.1f} s a call, left out from here on"
                            )
                            slow.add(name)
                            break
                    else:
                        calls[name] = call
                numbers = rounds(arguments.rounds, arguments.seconds)
                for number in tqdm(numbers, f"{work} at batch {batch}", arguments.rounds, leave=False):
                    for name, call in calls.items():
                        wall, cpu = clock(call, device)
                        sample = {"model": name, "round": number, "wall_ms": wall, "cpu_ms": cpu}
                        yield {"work": work, "batch": batch} | sample | {"threads": threads, "device": device.type}


def make_call(contestant: Contestant, work: str, x: Tensor) -> Callable[[], object]:
    """A function that does a work (step, log_prob or sample) once, on a batch of points x or on as many samples."""
    model = contestant.model.to(x.device)
    if work == "step":
        optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-5, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            (-contestant.log_prob(x).mean()).backward()
            optimizer.step()

        return step
    model.eval()
    if isinstance(model, LUNet):
        with torch.no_grad():
            model(model.sample(4 * model.features))  # enough rows for its matrices to be folded

    @torch.no_grad()
    def evaluate() -> None:
        _ = contestant.log_prob(x) if work == "log_prob" else contestant.sample(len(x))

    return evaluate


def summarise(samples: pd.DataFrame) -> pd.DataFrame:
    """Medians and quartiles, and the ratios of medians to that of the first model of each work and batch.

    One process takes all times, so that there are no intervals: another one may be faster or slower throughout.
    With one thread on a CPU, the times are CPU times, which other jobs on the machine hardly affect.
    """
    rows = []
    for (work, batch), group in samples.groupby(["work", "batch"], sort=False):
        clock = "cpu_ms" if (group["threads"] == 1).all() and (group["device"] == "cpu").all() else "wall_ms"
        names = list(dict.fromkeys(group["model"]))
        times = {name: group.loc[group["model"] == name, clock].to_numpy() for name in names}
        for name in names:
            quarter, median, three_quarters = np.quantile(times[name], [0.25, 0.5, 0.75])
            rows.append({
                "work": work, "batch": batch, "model": name, "clock": clock.removesuffix("_ms"), "n": len(times[name]),
                "ms": median, "ms_25": quarter, "ms_75": three_quarters,
                "against": names[0], "ratio": median / np.median(times[names[0]]),
            })  # fmt: skip
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the medians with their quartiles and ratios to the first model, one panel for each work and batch."""
    matplotlib.use("Agg")
    groups = list(table.groupby(["work", "batch"], sort=False))
    columns = min(3, len(groups))
    figure, axes = plt.subplots(
        -(-len(groups) // columns),
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(4.6 * columns, 2.9 * -(-len(groups) // columns)),
    )
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    for axis, ((work, batch), group) in zip(axes.flat, groups, strict=False):
        positions = range(len(group))
        for position, (_, row) in zip(positions, group.iterrows(), strict=True):
            colour = "#3b6fb6" if row["model"].startswith(("lunet", "realnvp")) else "#777777"
            errors = [[row["ms"] - row["ms_25"]], [row["ms_75"] - row["ms"]]]
            axis.errorbar(row["ms"], position, xerr=errors, fmt="o", color=colour, capsize=2)
            axis.annotate(
                f"{round_significant(row['ratio'], 2):,g}",
                (row["ms"], position),
                (7, 3),
                textcoords="offset points",
                fontsize=7,
            )
        axis.set(
            yticks=positions,
            yticklabels=group["model"],
            title=f"{work}, batch {batch}",
            xlabel="milliseconds",
            xscale="log",
            xlim=(group["ms"].min() / 1.25, group["ms"].max() * 1.5),
        )
        wide = group["ms"].max() > 30 * group["ms"].min()
        axis.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 1.5, 2, 3, 5, 7)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(color="#dddddd")
        axis.invert_yaxis()
    with plt.rc_context({"svg.hashsalt": "times", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


if __name__ == "__main__":
    main()
