"""The report's figures, drawn with matplotlib: equal values give equal bytes, and a page can recolour the ink.

Text, axes and all marks that belong to no recipe are drawn in `INK`. The report replaces it with the page's text
colour, so that figures are readable in the dark theme too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from pipeline.results.looks import INK, KNOWN, TIMES, Look, looks
from pipeline.results.reading import Results
from pipeline.results.statistics import median_over_processes
from pipeline.results.tables import by_dataset

STYLE = Path(__file__).with_suffix(".mplstyle")
Looks = Mapping[str, Look]
# Figures by two names, one of them the recipe's.
Figures = Mapping[str, Mapping[str, float]]
Json = Mapping[str, Any]
Density = NDArray[np.float32]
MASSES = (0.99, 0.9, 0.5)
# The offset and the opacity of each phase's bars of memory.
PHASES = {"training": (-0.19, 1.0), "sampling": (0.19, 0.4)}


def draw(folder: Path, results: Results, tables: Mapping[str, pd.DataFrame], contents: Json) -> None:
    """Draw the figures of each data set from the tables and the JSON files; a figure without data is left out."""
    recipes, claims = looks(results.params.grid.recipes), contents["claims.json"]
    tables = {**tables, "timings.csv": by_dataset(tables["timings.csv"])}
    for dataset in results.datasets:
        rows = {name: table[table["dataset"] == dataset] for name, table in tables.items()}
        history, timings = rows["curves.csv"], rows["timings.csv"]
        if len(rows["latents.csv"]):
            latents(folder / f"latents-{dataset}.svg", rows["latents.csv"], recipes)
        if len(history):
            curves(folder / f"curves-{dataset}.svg", history, recipes)
            progress(folder / f"progress-{dataset}.svg", history, recipes)
        metrics = contents["metrics.json"][dataset]
        bits = {recipe: values["bits_per_dim"] for recipe, values in metrics.items() if "bits_per_dim" in values}
        if bits:
            references = [row for row in claims["references"] if row["dataset"] == dataset]
            likelihoods(folder / f"likelihood-{dataset}.svg", bits, references, recipes)
        if timings["quantity"].isin(list(TIMES)).any():
            times(folder / f"times-{dataset}.svg", timings, recipes, poster_times(claims["poster"]))
        peaks = {
            (recipe, phase): medians[f"memory_{phase}_mib"]["median"]
            for recipe, medians in contents["timings.json"][dataset].items()
            for phase in PHASES
            if f"memory_{phase}_mib" in medians
        }
        if peaks:
            measured = [results.measured(dataset, recipe) for recipe in recipes]
            floors = {cell.recipe: cell.floors_mib or {} for cell in measured if cell}
            memory(folder / f"memory-{dataset}.svg", peaks, floors, recipes)
        matrices = timings[timings["quantity"].str.startswith("determinant_")]
        if len(matrices):
            recipe = matrices["recipe"].iloc[0]
            determinant(folder / f"determinant-{dataset}.svg", matrices[matrices["recipe"] == recipe], recipes[recipe])


def poster_times(poster: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The poster's times by quantity and recipe, in milliseconds corrected by ``factors``."""
    return {
        row["figure"].removesuffix("_ms"): {
            recipe: row[recipe] / (row["factors"] or {}).get(recipe, 1) for recipe in ("lunet", "realnvp")
        }
        for row in poster
        if row["figure"]
    }


@contextmanager
def figure(path: Path, height: float, *, width: float = 5.4, panels: int = 1) -> Iterator[Sequence[Axes]]:
    """The panels of a figure that is written to ``path`` as SVG: no date, and ids that depend only on the file name."""
    with mpl.rc_context({"svg.hashsalt": path.stem}, STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.subplots(1, panels, squeeze=False)[0]
        figure.savefig(path, transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def _plain_numbers(axis: Axis, ticks: LogLocator | None = None) -> None:
    """Write the numbers of a logarithmic axis in full; with ``ticks``, at those places alone."""
    axis.set_major_formatter("{:g}".format)
    if ticks is not None:
        axis.set_major_locator(ticks)
        axis.set_minor_formatter(NullFormatter())


def _name_rows(axes: Axes, positions: Sequence[float], names: Sequence[str]) -> None:
    """Name horizontal rows on the left, without ticks and grid."""
    axes.set_yticks(positions, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _note(axes: Axes, text: str, x: float, y: float, offset: int = 4, **style: Any) -> None:
    """Write a text to the right of a point."""
    axes.annotate(text, (x, y), (offset, 0), textcoords="offset points", va="center", **style)


def curves(path: Path, rows: pd.DataFrame, recipes: Looks) -> None:
    """Held-out (solid) and training (dashed) bits/dim against the epoch, with bands; see `bundle`."""
    with figure(path, 3.4) as [axes]:
        shown: list[float] = []
        for recipe, look in recipes.items():
            recipe_rows = rows[rows["recipe"] == recipe]
            holdout, train = (bundle(recipe_rows, "epoch", f"{kind}_bits_per_dim") for kind in ("holdout", "train"))
            _draw_bundle(axes, holdout, look)
            axes.plot(train["x"], train["mean"], color=look.colour, linewidth=1.1, linestyle=(0, (3, 2)))
            # An untrained model may lie far above all later values, so it does not count for the limits of the axis.
            shown += [*holdout["low"][1:], *holdout["high"][1:], *train["mean"]]
        if shown:
            pad = 0.06 * (max(shown) - min(shown) or 1)
            axes.set_ylim(min(shown) - pad, max(shown) + pad)
        axes.plot([], [], color=INK, linewidth=1.6, label="held-out")
        axes.plot([], [], color=INK, linewidth=1.1, linestyle=(0, (3, 2)), label="training")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4 if len(recipes) <= 4 else 3, columnspacing=1.2)
        axes.set(xlabel="epoch", ylabel="bits per dimension")


def progress(path: Path, rows: pd.DataFrame, recipes: Looks) -> None:
    """Held-out bits/dim against the seconds of training, logarithmic, with bands; see `bundle`."""
    trained = rows[(rows["step"] > 0) & (rows["seconds"] > 0)].dropna(subset=["holdout_bits_per_dim"])
    with figure(path, 3.4) as [axes]:
        for recipe, look in recipes.items():
            _draw_bundle(axes, bundle(trained[trained["recipe"] == recipe], "seconds", "holdout_bits_per_dim"), look)
        axes.set_xscale("log")
        # A short training spans less than a decade.
        _plain_numbers(axes.xaxis, LogLocator(subs=(1, 2, 5)))
        if axes.lines:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1.2)
        axes.set(xlabel="seconds of training, logarithmic", ylabel="held-out bits per dimension")


def bundle(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """One recipe's models and seeds as one curve: mean x, and mean, minimum and maximum of y at each validation."""
    curves = rows.dropna(subset=[x, y])
    validations = curves.groupby(curves.groupby(["seed", "model"]).cumcount())
    return validations.agg(x=(x, "mean"), mean=(y, "mean"), low=(y, "min"), high=(y, "max"), n=(y, "size"))


def _draw_bundle(axes: Axes, curve: pd.DataFrame, look: Look) -> None:
    """Draw the mean as a line; with several curves, also a band from the minimum to the maximum."""
    if not len(curve):
        return
    axes.plot(curve["x"], curve["mean"], markersize=4, linewidth=1.6, **look.line)
    if curve["n"].max() > 1:
        axes.fill_between(curve["x"], curve["low"], curve["high"], color=look.colour, alpha=0.18, linewidth=0)


def likelihoods(path: Path, figures: Mapping[str, Json], references: Sequence[Json], recipes: Looks) -> None:
    """Test bits/dim of our recipes (bars with intervals) and of published figures (outlined bars), best on top."""
    ours = [(interval["mean"], recipe, interval) for recipe, interval in figures.items()]
    published = [(reference["value"], reference["label"], None) for reference in references]
    bars = sorted([*ours, *published], key=lambda bar: bar[:2])
    outlined: Any = {"fill": False, "edgecolor": INK, "alpha": 0.45, "linewidth": 0.8}
    with figure(path, 0.9 + 0.25 * len(bars)) as [axes]:
        for position, (value, name, interval) in enumerate(bars):
            style = {"color": recipes[name].colour} if interval else outlined
            low, high = (interval["ci_low"], interval["ci_high"]) if interval else (None, None)
            axes.barh(position, value, height=0.62, **style)
            if low is not None:
                axes.plot([low, high], [position, position], color=INK, linewidth=1.4)
            _note(axes, f"{value:.2f}", value if high is None else max(value, high), position, fontsize=9)
        _name_rows(axes, range(len(bars)), [recipes[name].label if own else name for _, name, own in bars])
        for tick, (_, _, interval) in zip(axes.get_yticklabels(), bars, strict=True):
            tick.set(alpha=1.0 if interval else 0.7, fontweight="bold" if interval else "normal")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12 * max((value for value, _, _ in bars), default=1))
        axes.set_xlabel("test bits per dimension (shorter is better)")


def latents(path: Path, rows: pd.DataFrame, recipes: Looks) -> None:
    """Quantiles of projected test latents minus those of the standard normal, a line for each recipe's first seed."""
    first = rows[rows["seed"] == rows.groupby("recipe")["seed"].transform("min")]
    with figure(path, 3.2) as [axes]:
        axes.axhline(0, color=INK, linewidth=0.9)
        for recipe, line in first.groupby("recipe", sort=False):
            difference = line["projection_quantile"] - line["normal_quantile"]
            axes.plot(line["normal_quantile"], difference, linewidth=1.6, markersize=3.5, **recipes[str(recipe)].line)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.12, 1), ncols=3, columnspacing=0.8, handlelength=1.4)
        axes.set(xlabel="quantile of the standard normal", ylabel="how far the latents’ is off")


def times(path: Path, rows: pd.DataFrame, recipes: Looks, poster: Figures) -> None:
    """Every raw repetition on a logarithmic axis, with the poster's times (open diamonds).

    An upright mark is the median over processes, and a line its interval, as in `median_over_processes`.

    Args:
        path: The file to write.
        rows: The rows of `timings.csv` for one data set.
        recipes: The recipes' looks.
        poster: For each quantity that can be compared, the poster's figures in milliseconds by recipe.
    """
    samples = rows.groupby(["quantity", "recipe"])
    lines: list[tuple[float, str, str]] = []
    position, titles = 0.0, []
    for quantity, title in TIMES.items():
        measured = [recipe for recipe in recipes if (quantity, recipe) in samples.groups]
        if measured:
            titles.append((position, title))
            lines += [(position + 1 + number, quantity, recipe) for number, recipe in enumerate(measured)]
            position += len(measured) + 1.4
    with figure(path, 0.8 + 0.2 * position) as [axes]:
        for height, quantity, recipe in lines:
            taken = samples.get_group((quantity, recipe))
            values = taken["value"].tolist()
            median = median_over_processes(values, taken["process"].fillna(0).tolist())
            look = recipes[recipe]
            axes.plot(values, [height] * len(values), look.marker, color=look.colour, alpha=0.4, markersize=4, mew=0)
            axes.plot([median.value], [height], "|", color=look.colour, markersize=11, mew=2.2)
            if median.low is not None:
                axes.plot([median.least, median.most], [height, height], color=look.colour, linewidth=1.4)
            if (printed := poster.get(quantity, {}).get(recipe)) is not None:
                axes.plot([printed], [height], "D", color=INK, fillstyle="none", markersize=5)
        for height, title in titles:
            _note(axes, title, 0, height, 5, xycoords=("axes fraction", "data"), fontweight="bold")
        _name_rows(axes, [height for height, _, _ in lines], [recipes[recipe].label for _, _, recipe in lines])
        axes.set(ylim=(position, -0.7), xscale="log", xlabel="milliseconds, logarithmic")
        _plain_numbers(axes.xaxis, LogLocator(numticks=8))


def memory(path: Path, peaks: Mapping[tuple[str, str], float], floors: Figures, recipes: Looks) -> None:
    """Peak memory: training as full bars, sampling as pale bars; a mark on each bar is the lower bound.

    Args:
        path: The file to write.
        peaks: MiB by recipe and phase, "training" or "sampling".
        floors: The lower bounds in MiB by recipe, under the names of the phases.
        recipes: The recipes' looks.
    """
    shown = list(dict.fromkeys(recipe for recipe, _ in peaks))
    with figure(path, 0.9 + 0.42 * len(shown)) as [axes]:
        for (recipe, phase), peak in peaks.items():
            offset, alpha = PHASES[phase]
            height = shown.index(recipe) + offset
            axes.barh(height, peak, 0.34, color=recipes[recipe].colour, alpha=alpha)
            if (least := floors.get(recipe, {}).get(phase)) is not None:
                ends = [height - 0.17, height + 0.17]
                axes.plot([least, least], ends, color=INK, linewidth=1.8, solid_capstyle="butt")
            _note(axes, f"{peak:,.0f} {phase}", peak, height, fontsize=8.5)
        _name_rows(axes, range(len(shown)), [recipes[recipe].label for recipe in shown])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.35 * max(peaks.values()) or 1)
        axes.set_xlabel("MiB at the peak")


def determinant(path: Path, rows: pd.DataFrame, look: Look) -> None:
    """Median times of both log-determinants against the width, both axes logarithmic."""
    with figure(path, 3.0) as [axes]:
        styles = {
            "determinant_diagonal": (look.colour, "o", "LU layer: sum of the log-diagonal"),
            "determinant_slogdet": (INK, "s", "dense matrix: slogdet"),
        }
        if len(calls := rows.loc[rows["quantity"] == "determinant_call", "value"]):
            axes.axhline(
                calls.median(), color=look.colour, linestyle="dotted", label="LU layer: a call without any work"
            )
        for quantity, (colour, marker, label) in styles.items():
            samples = rows[rows["quantity"] == quantity].astype({"width": "int64"})
            medians = samples.groupby("width")["value"].median()
            style: Any = {"color": colour, "marker": marker}
            axes.plot(samples["width"], samples["value"], linestyle="none", markersize=3, alpha=0.35, mew=0, **style)
            axes.plot(medians.index, medians, markersize=4.5, linewidth=1.5, label=label, **style)
        axes.set(xlabel="width D", ylabel="milliseconds", yscale="log")
        axes.set_xscale("log", base=2)
        _plain_numbers(axes.xaxis)
        _plain_numbers(axes.yaxis)
        axes.legend(loc="upper left")


def mixture(
    path: Path, densities: Mapping[str, Density], box: Sequence[float], points: Sequence[Sequence[float]]
) -> None:
    """The regions of highest density that contain `MASSES` of the mass, a panel for the truth and each model.

    Args:
        path: The file to write.
        densities: Log-densities in nats on a grid, each with shape (rows, columns), from the lowest coordinates up.
        box: The first and the last coordinate of the grid along x and along y.
        points: Test points.
    """
    left, right, bottom, top = box
    known = {"truth": Look("the mixture itself", INK, "o"), **{name: KNOWN[name] for name in ("lunet", "gaussian")}}
    shown = {name: look for name, look in known.items() if name in densities}
    with figure(path, 3.7, width=2.7 * len(shown), panels=len(shown)) as panels:
        for axes, (name, look) in zip(panels, shown.items(), strict=True):
            rows, columns = densities[name].shape
            x, y = np.linspace(left, right, columns), np.linspace(bottom, top, rows)
            levels = _levels(densities[name], (x[1] - x[0]) * (y[1] - y[0]))
            axes.plot(*np.transpose(points), ".", color=INK, markersize=2.2, mew=0, alpha=0.45, zorder=1)
            for level, alpha in zip(levels, (0.16, 0.3, 0.5), strict=True):
                if level is not None:
                    style: Any = {"colors": [look.colour], "zorder": 2}
                    axes.contourf(x, y, densities[name], [level, np.inf], alpha=alpha, **style)
                    axes.contour(x, y, densities[name], [level], linewidths=0.7, linestyles="solid", **style)
            axes.set_title(look.label, fontsize=9.5)
            axes.set(aspect="equal", xlim=(left, right), ylim=(bottom, top))


def _levels(log_density: Density, area: float) -> list[float | None]:
    """The log-density on the boundary of each region of `MASSES`; None if the grid contains too little mass."""
    values = np.sort(log_density.ravel())[::-1].astype(np.float64)
    mass = np.cumsum(np.exp(values)) * area
    return [float(values[index]) if index < len(values) else None for index in np.searchsorted(mass, MASSES)]
