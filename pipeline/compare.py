"""Compares the metrics of the workspace with those of a revision, and reports which differences exceed the noise.

The rule: a difference is larger than the noise if it exceeds the half-width of a 95 % interval around zero, t times the
square root of the summed variances of both sides. The variance of a side is that of its mean over seeds, from the
interval in metrics.json, plus that over test images, from results.csv if it exists: s^2 / images for bits/dim, and
p (1 - p) / images for the classification accuracy. The number t is Student's quantile at the degrees of freedom of
Welch and Satterthwaite. Both sides are treated as independent, which overstates the noise if they share seeds and test
images, so the rule is conservative. Numbers of parameters have no noise. With one seed and no spread over images, the
noise is unknown, and the report says so.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from pipeline.core.console import UserError, exit_with, say
from pipeline.results.statistics import CONFIDENCE

RULE = (
    "Rule: larger than the noise is a difference beyond the 95 % margin of noise of both sides together: the standard "
    "errors over seeds and, for bits_per_dim and classification_accuracy, over test images."
)
EXACT = ("parameters_free", "parameters_stored")
LARGER, WITHIN, UNKNOWN, CHANGED, NEW, GONE, SAME = (
    "larger than the noise",
    "within the noise",
    "noise unknown (one seed)",
    "changed (exact)",
    "new",
    "gone",
    "the same",
)
FigurePath = tuple[str, ...]
Variance = tuple[float, float]


@dataclass(frozen=True)
class Side:
    """One side of the comparison: figures by path in metrics.json, spreads over test images, and hashes of the data."""

    figures: Mapping[FigurePath, Mapping[str, Any]]
    spreads: Mapping[FigurePath, tuple[float, int]]
    datasets: Mapping[str, Any]

    def variances(self, path: FigurePath) -> list[Variance]:
        """The variances of a figure, each with its degrees of freedom; empty if the noise is unknown."""
        figure, variances = self.figures[path], []
        if figure["n"] > 1 and figure["ci_high"] is not None:
            freedom = figure["n"] - 1
            half = (figure["ci_high"] - figure["ci_low"]) / 2
            variances.append(((half / float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))) ** 2, float(freedom)))
        if path[:-1] in self.spreads:
            deviation, images = self.spreads[path[:-1]]
            share = min(max(figure["mean"], 0.0), 1.0)
            variance = {"bits_per_dim": deviation**2, "classification_accuracy": share * (1 - share)}.get(path[-1])
            if variance is not None and images > 1:
                variances.append((variance / images, images - 1.0))
        return variances


def main() -> None:
    """Compare with the revision that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.compare",
        description="Compare reports/metrics.json with that of a git revision, or of an experiment of DVC, and tell "
        f"which differences are larger than the noise. {RULE}".replace("%", "%%"),
        epilog="example: python -m pipeline.compare HEAD~1",
    )
    parser.add_argument("revision", metavar="REV", help="a commit, branch or tag, or the name of an experiment")
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="the folder of collect (%(default)s)")
    parser.add_argument("--all", action="store_true", help="show what is the same too")
    arguments = parser.parse_args()
    commit = resolve(arguments.revision)
    before = read_side(
        lambda name: _text_at_commit(commit, f"./{arguments.reports.as_posix()}/{name}"), arguments.revision
    )
    now = read_side(lambda name: _text_of_file(arguments.reports / name), "the workspace")
    say(report(before, now, arguments.revision, everything=arguments.all))


def compare(before: Side, now: Side) -> pd.DataFrame:
    """A row for each figure of either side: both values, their difference, its noise and the verdict."""
    rows = []
    for path in dict.fromkeys([*before.figures, *now.figures]):
        old, new = (side.figures[path]["mean"] if path in side.figures else None for side in (before, now))
        change = noise = None
        if old is None or new is None:
            verdict = NEW if old is None else GONE
        else:
            change = new - old
            noise = 0.0 if path[-1] in EXACT else margin(before.variances(path), now.variances(path))
            if change == 0:
                verdict = SAME
            elif path[-1] in EXACT:
                verdict = CHANGED
            elif noise is None:
                verdict = UNKNOWN
            else:
                verdict = LARGER if abs(change) > noise else WITHIN
        rows.append((".".join(path[:-1]), path[-1], old, new, change, noise, verdict))
    table = pd.DataFrame(rows, columns=["of", "metric", "before", "now", "change", "noise", "verdict"])
    return table.astype(dict.fromkeys(("before", "now", "change", "noise"), "float64"))


def margin(before: Sequence[Variance], now: Sequence[Variance]) -> float | None:
    """The half-width of the 95 % interval of a difference; None if the noise of a side is unknown."""
    if not before or not now:
        return None
    parts = [*before, *now]
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts)
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(total)


def report(before: Side, now: Side, revision: str, *, everything: bool = False) -> str:
    """The comparison as text: warnings, a table of the differences, and counts."""
    table = compare(before, now)
    lines = [f"reports/metrics.json: the workspace against {revision}", RULE]
    for change, ours, theirs in (("new", now, before), ("gone", before, now)):
        groups = sorted(
            {".".join(path[:-1]) for path in ours.figures} - {".".join(path[:-1]) for path in theirs.figures}
        )
        lines += [f"{change}: {group}, {(table['of'] == group).sum()} metrics" for group in groups]
        table = table[~table["of"].isin(groups)]
    for name in sorted(set(before.datasets) & set(now.datasets)):
        if before.datasets[name] != now.datasets[name]:
            lines.append(f"warning: the data of {name} are others now, so its figures are of other images")
    if not now.spreads or not before.spreads:
        lines.append("warning: a side has no results.csv, so nothing is known of its spread over test images")
    counts = table["verdict"].value_counts()
    shown = table if everything else table[table["verdict"] != SAME]
    if len(shown):
        text = shown.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.6g}")
        lines += ["", *(line.rstrip() for line in text.splitlines()), ""]
    verdicts = (LARGER, CHANGED, WITHIN, UNKNOWN, NEW, GONE, SAME)
    lines.append("; ".join(f"{counts[verdict]} {verdict}" for verdict in verdicts if verdict in counts) or "nothing")
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
        figures = dict(_figures(json.loads(text)))
        spreads = {} if results is None else _spreads(pd.read_csv(StringIO(results)))
        datasets = {} if provenance is None else json.loads(provenance)["datasets"]
        return Side(figures, spreads, {key: info["sha256"] for key, info in datasets.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"the reports of {name} are damaged: {type(error).__name__}: {error}") from None


def _figures(values: Any, prefix: FigurePath = ()) -> Iterator[tuple[FigurePath, Mapping[str, Any]]]:
    """Each figure with its path in metrics.json."""
    for key, value in values.items():
        if isinstance(value, dict) and "mean" in value:
            if not math.isfinite(value["mean"]):
                raise ValueError(f"{'.'.join((*prefix, key))} is {value['mean']}")
            yield (*prefix, key), {"ci_low": None, "ci_high": None, "n": 1, **value}
        elif isinstance(value, dict):
            yield from _figures(value, (*prefix, key))


def _spreads(results: pd.DataFrame) -> dict[FigurePath, tuple[float, int]]:
    """By data set and recipe: the deviation of bits/dim over test images, as a mean over seeds, and their number."""
    rows = results[(results["class"] == "all") & (results["status"] == "complete")]
    groups = rows.groupby(["dataset", "recipe"], as_index=False)[["bits_per_dim_std", "images"]].mean().dropna()
    return {
        (str(dataset), str(recipe)): (float(deviation), int(images))
        for dataset, recipe, deviation, images in groups.itertuples(index=False)
    }


def resolve(revision: str) -> str:
    """The commit of a revision of git, or of an experiment of DVC by its name.

    Raises:
        UserError: If there is no git, no repository, or no such revision.
    """
    if _git("rev-parse", "--git-dir") is None:
        raise UserError("this folder is no git repository, so there is no revision to compare with")
    if not revision.startswith("-"):
        commit = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        experiments = (_git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps") or "").splitlines()
        named = [line.split()[1] for line in experiments if line.split()[0].endswith(f"/{revision}")]
        if commit or named:
            return (commit or named[0]).strip()
    raise UserError(f"{revision} is no revision of git and no experiment; see: git log --oneline, dvc exp show")


def _text_at_commit(commit: str, path: str) -> str | None:
    """The text of a file at a commit; None if the commit lacks it."""
    return _git("show", f"{commit}:{path}")


def _git(*arguments: str) -> str | None:
    """The output of git; None if it fails."""
    try:
        process = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not on this machine, so there is no revision to compare with") from None
    return process.stdout if process.returncode == 0 else None


def _text_of_file(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


if __name__ == "__main__":
    exit_with(main)
