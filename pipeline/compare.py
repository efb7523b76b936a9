"""Compares the metrics of the workspace with those of a revision, and reports which differences exceed the noise.

The rule: a difference is larger than the noise if it exceeds the half-width of a 95 % interval around zero, t times the
square root of the summed variances of both sides. The variance of a side is that of its mean over seeds, from the
interval in metrics.json, plus that over test images, from results.csv if it exists: s^2 / images for bits/dim, and
p (1 - p) / images for the classification accuracy. The number t is Student's quantile at the degrees of freedom of
Welch and Satterthwaite. Both sides are treated as independent, which overstates the noise if they share seeds and test
images. With fewer than three seeds the noise of these two is that over images alone, which says nothing of another
seed, and that of all others is unknown; the report says so. Numbers of parameters have no noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.core.console import UserError, command_parser, exit_with, say
from pipeline.core.git import git
from pipeline.results.statistics import CONFIDENCE, REPEATS

RULE = (
    "Rule: larger than the noise is a difference beyond the 95 % margin of noise of both sides together: the standard "
    "errors over seeds and, for bits_per_dim and classification_accuracy, over test images."
)
EXACT = ("parameters_free", "parameters_stored")
VERDICTS = LARGER, CHANGED, WITHIN, UNKNOWN, NEW, GONE, SAME = (
    "larger than the noise",
    "changed (exact)",
    "within the noise",
    "noise unknown",
    "new",
    "gone",
    "the same",
)


@dataclass(frozen=True)
class Side:
    """One side of the comparison: its figures, the hashes of its data, whether it has spreads over images, and seeds.

    ``figures`` has a row for each group of metrics ("of") and metric: the mean, its ``variance``, which is NaN if the
    noise is unknown, and ``term``, the sum of each part of the variance squared over its degrees of freedom. ``seeds``
    is the fewest of any figure, NaN without figures.
    """

    figures: pd.DataFrame
    datasets: Mapping[str, Any]
    has_spreads: bool
    seeds: float


def main() -> None:
    """Compare with the revision that the command line names."""
    parser = command_parser(
        "compare",
        "Compare reports/metrics.json with that of a git revision, or of an experiment of DVC, and tell "
        f"which differences are larger than the noise. {RULE}".replace("%", "%%"),
        example="HEAD~1",
        params=False,
    )
    parser.add_argument("revision", metavar="REV", help="a commit, branch or tag, or the name of an experiment")
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="the folder of collect (%(default)s)")
    parser.add_argument("--all", action="store_true", help="show what is the same too")
    arguments = parser.parse_args()
    revision, folder = arguments.revision, arguments.reports
    commit = resolve(revision)
    before = read_side(lambda name: git("show", f"{commit}:./{folder.as_posix()}/{name}"), revision)
    now = read_side(lambda name: _text_of(folder / name), "the workspace")
    say(report(before, now, revision, everything=arguments.all))


def compare(before: Side, now: Side) -> pd.DataFrame:
    """A row for each figure of either side: both values, their difference, its noise and the verdict."""
    index = before.figures.index.union(now.figures.index, sort=False)
    old, new = before.figures.reindex(index), now.figures.reindex(index)
    change, total = new["mean"] - old["mean"], old["variance"] + new["variance"]
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, total**2 / (old["term"] + new["term"]))
    exact = index.isin(EXACT, level="metric")
    noise = (total**0.5 * quantile).where(total > 0, total).mask(exact & change.notna(), 0.0)
    verdict = pd.Series(WITHIN, index).case_when(
        [
            (old["mean"].isna(), NEW),
            (new["mean"].isna(), GONE),
            (change == 0, SAME),
            (exact, CHANGED),
            (noise.isna(), UNKNOWN),
            (change.abs() > noise, LARGER),
        ]
    )
    columns = {"before": old["mean"], "now": new["mean"], "change": change, "noise": noise, "verdict": verdict}
    return pd.DataFrame(columns).reset_index()


def report(before: Side, now: Side, revision: str, *, everything: bool = False) -> str:
    """The comparison as text: warnings, a table of the differences, and counts."""
    table = compare(before, now)
    lines = [f"reports/metrics.json: the workspace against {revision}", RULE]
    for change, ours, theirs in (("new", now, before), ("gone", before, now)):
        groups = sorted(set(ours.figures.index.unique("of")) - set(theirs.figures.index.unique("of")))
        lines += [f"{change}: {group}, {(table['of'] == group).sum()} metrics" for group in groups]
        table = table[~table["of"].isin(groups)]
    for name in sorted(set(before.datasets) & set(now.datasets)):
        if before.datasets[name] != now.datasets[name]:
            lines.append(f"warning: the data of {name} are others now, so its figures are of other images")
    if not (now.has_spreads and before.has_spreads):
        lines.append("warning: a side has no results.csv, so nothing is known of its spread over test images")
    elif min(now.seeds, before.seeds) < REPEATS:
        lines.append(
            "warning: a side has figures of fewer than three seeds, whose noise is that over test images alone; "
            "another seed may change them by more"
        )
    counts = table["verdict"].value_counts()
    shown = table if everything else table[table["verdict"] != SAME]
    if len(shown):
        text = shown.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.6g}")
        lines += ["", *(line.rstrip() for line in text.splitlines()), ""]
    lines.append("; ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts) or "nothing")
    return "\n".join(lines)


def read_side(read: Callable[[str], str | None], name: str) -> Side:
    """Read one side; ``read`` returns the text of a file in the reports' folder, or None if there is no such file.

    Raises:
        UserError: If there are no metrics, or a file is damaged.
    """
    text = read("metrics.json")
    if text is None:
        raise UserError(f"{name} has no reports/metrics.json; write it with: dvc repro")
    results, provenance = read("results.csv"), read("provenance.json")
    try:
        spreads = _spreads(results)
        figures = _figures(json.loads(text), spreads)
        datasets = {} if provenance is None else json.loads(provenance)["datasets"]
        hashes = {key: info["sha256"] for key, info in datasets.items()}
        return Side(figures.drop(columns="n"), hashes, not spreads.empty, float(figures["n"].min()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"the reports of {name} are damaged: {type(error).__name__}: {error}") from None


def _figures(metrics: Any, spreads: pd.DataFrame) -> pd.DataFrame:
    """The figures in metrics.json as a `Side` has them, and ``n``, the number of seeds of each."""
    rows = {
        (f"{dataset}.{recipe}", metric): figure
        for dataset, recipes in metrics.items()
        for recipe, figures in recipes.items()
        for metric, figure in figures.items()
        if isinstance(figure, dict)
    }
    index = pd.MultiIndex.from_tuples(rows, names=["of", "metric"])
    table = pd.DataFrame([*rows.values()], index, ["mean", "ci_low", "ci_high", "n"], "float64")
    mean, metric, spread = table["mean"], index.get_level_values("metric"), spreads.reindex(index, level="of")
    if len(wrong := mean[~np.isfinite(mean)]):
        raise ValueError(f"{'.'.join(wrong.index[0])} is {wrong.iloc[0]}")
    freedoms = pd.DataFrame({"seeds": table["n"] - 1, "images": spread["images"] - 1})
    half = (table["ci_high"] - table["ci_low"]) / 2
    share = mean.clip(0, 1)
    of_one_image = np.select(
        [metric == "bits_per_dim", metric == "classification_accuracy"],
        [spread["deviation"] ** 2, share * (1 - share)],
        np.nan,
    )
    over_seeds = (half / stats.t.ppf((1 + CONFIDENCE) / 2, freedoms["seeds"])) ** 2
    variances = pd.DataFrame({"seeds": over_seeds, "images": of_one_image / spread["images"]}).where(freedoms > 0)
    sums = {"variance": variances.sum(axis=1, min_count=1), "term": (variances**2 / freedoms).sum(axis=1)}
    return pd.DataFrame({"mean": mean, **sums, "n": table["n"]})


def _spreads(results: str | None) -> pd.DataFrame:
    """By data set and recipe: the deviation of bits/dim over test images, as a mean over seeds, and their number."""
    if results is None:
        return pd.DataFrame(columns=["deviation", "images"], dtype="float64")
    table = pd.read_csv(StringIO(results)).rename(columns={"bits_per_dim_std": "deviation"})
    rows = table[(table["class"] == "all") & (table["status"] == "complete")]
    means = rows.groupby(rows["dataset"] + "." + rows["recipe"])[["deviation", "images"]].mean().dropna()
    return means.astype({"deviation": "float64", "images": "int64"})


def resolve(revision: str) -> str:
    """The commit of a revision of git, or of an experiment of DVC by its name.

    Raises:
        UserError: If there is no git, no repository, or no such revision.
    """
    if git("rev-parse", "--git-dir") is None:
        lacking = "git is not on this machine" if git("version") is None else "this folder is no git repository"
        raise UserError(f"{lacking}, so there is no revision to compare with")
    if not revision.startswith("-"):
        commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        experiments = (git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps") or "").splitlines()
        named = [line.split()[1] for line in experiments if line.split()[0].endswith(f"/{revision}")]
        if commit or named:
            return commit or named[0]
    raise UserError(f"{revision} is no revision of git and no experiment; see: git log --oneline, dvc exp show")


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


if __name__ == "__main__":
    exit_with(main)
