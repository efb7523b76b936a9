"""Tests of the comparison with a revision: the noise rule, the report's lines, and reading from git."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from pipeline import compare
from pipeline.compare import Side, read_side, report
from pipeline.core.console import UserError
from pipeline.results.statistics import mean_interval

RESULTS = "dataset,recipe,seed,class,status,images,bits_per_dim_std\n"


def figure(*samples: float) -> dict[str, Any]:
    estimate = mean_interval(samples)
    return {"mean": estimate.value, "ci_low": estimate.low, "ci_high": estimate.high, "n": estimate.n}


def side(metrics: dict[str, Any], rows: str = "", **data: str) -> Side:
    contents = {
        "metrics.json": json.dumps(metrics),
        "results.csv": RESULTS + rows,
        "provenance.json": json.dumps({"datasets": {name: {"sha256": value} for name, value in data.items()}}),
    }
    return read_side(contents.get, "the test")


def verdicts(before: Side, now: Side) -> dict[str, str]:
    table = compare.compare(before, now)
    return dict(zip(table["of"] + "." + table["metric"], table["verdict"], strict=True))


# The rule


def test_the_noise_over_seeds_is_welch_s() -> None:
    old, new = (1.8, 1.9, 2.0, 1.85), (2.1, 2.3, 2.2)
    sides = [side({"mnist": {"lunet": {"best_epoch": figure(*samples)}}}) for samples in (old, new)]
    noise = compare.compare(*sides)["noise"].item()
    interval = stats.ttest_ind(new, old, equal_var=False).confidence_interval(0.95)
    assert noise == pytest.approx((interval.high - interval.low) / 2, rel=1e-9)


def test_the_noise_over_images_counts_for_bits_per_dim_with_one_seed() -> None:
    rows = "mnist,lunet,0,all,complete,10000,0.3\nmnist,lunet,0,1,complete,1000,9\n"
    metrics = {"bits_per_dim": figure(1.88), "bits_per_dim_median": figure(1.88)}
    before = side({"mnist": {"lunet": metrics}}, rows)
    expected = stats.t.ppf(0.975, 2 * 9999) * (2 * 0.3**2 / 10_000) ** 0.5
    for change, verdict in ((0.99, compare.WITHIN), (1.01, compare.LARGER)):
        changed = {name: figure(1.88 + change * expected) for name in metrics}
        by_metric = verdicts(before, side({"mnist": {"lunet": changed}}, rows))
        assert by_metric == {"mnist.lunet.bits_per_dim": verdict, "mnist.lunet.bits_per_dim_median": compare.UNKNOWN}


def test_both_kinds_of_noise_add_up() -> None:
    rows = "".join(f"mnist,lunet,{seed},all,complete,100,0.3\n" for seed in (0, 1, 2))
    found = side({"mnist": {"lunet": {"bits_per_dim": figure(1.8, 1.9, 2.0)}}}, rows)
    over_seeds, over_images = 0.1**2 / 3, 0.3**2 / 100
    total = 2 * (over_seeds + over_images)
    freedom = total**2 / (2 * (over_seeds**2 / 2 + over_images**2 / 99))
    noise = compare.compare(found, found)["noise"].item()
    assert noise == pytest.approx(stats.t.ppf(0.975, freedom) * total**0.5)


def test_a_share_of_images_has_binomial_noise() -> None:
    found = side({"mnist": {"lunet": {"classification_accuracy": figure(0.9)}}}, "mnist,lunet,0,all,complete,100,0.3\n")
    noise = compare.compare(found, found)["noise"].item()
    assert noise == pytest.approx(stats.t.ppf(0.975, 2 * 99) * (2 * 0.0009) ** 0.5)


def test_parameters_have_no_noise() -> None:
    sides = [side({"mnist": {"lunet": {"parameters_free": figure(value)}}}) for value in (10, 11)]
    assert verdicts(*sides) == {"mnist.lunet.parameters_free": compare.CHANGED}
    assert verdicts(sides[0], sides[0]) == {"mnist.lunet.parameters_free": compare.SAME}


# The report


def test_new_and_gone_recipes_take_one_line_each() -> None:
    bits, epoch = figure(1.8), figure(3)
    before = side({"mnist": {"lunet": {"bits_per_dim": bits}, "old": {"bits_per_dim": bits, "best_epoch": epoch}}})
    now = side({"mnist": {"lunet": {"best_epoch": epoch}, "fresh": {"bits_per_dim": bits}, "failed": {}}})
    said = report(before, now, "HEAD")
    assert "new: mnist.fresh, 1 metrics" in said
    assert "gone: mnist.old, 2 metrics" in said
    assert [line.split() for line in said.splitlines() if line.lstrip().startswith("mnist.lunet")] == [
        ["mnist.lunet", "bits_per_dim", "1.8", "-", "-", "-", "gone"],
        ["mnist.lunet", "best_epoch", "-", "3", "-", "-", "new"],
    ]
    assert said.endswith("1 new; 1 gone")


def test_equal_figures_are_counted_and_shown_on_demand() -> None:
    one = side({"mnist": {"lunet": {"bits_per_dim": figure(1.8)}}})
    assert report(one, one, "HEAD").endswith("1 the same")
    assert "bits_per_dim  " not in report(one, one, "HEAD")
    assert "1.8" in report(one, one, "HEAD", everything=True)


def test_changed_data_few_seeds_and_missing_spreads_give_warnings() -> None:
    metrics = {"mnist": {"lunet": {"bits_per_dim": figure(1.8, 1.9, 1.7)}}}
    rows = "mnist,lunet,0,all,complete,100,0.3\n"
    said = report(side(metrics, rows, mnist="a"), side(metrics, rows, mnist="b"), "HEAD")
    assert "the data of mnist are others now" in said
    bare = read_side({"metrics.json": json.dumps(metrics)}.get, "x")
    assert "no results.csv" in report(bare, bare, "HEAD")
    repeated = side(metrics, rows, mnist="a")
    assert "warning" not in report(repeated, repeated, "HEAD")
    for few in (figure(1.8), figure(1.8, 1.9)):
        alone = side({"mnist": {"lunet": {"bits_per_dim": few}}}, rows, mnist="a")
        assert "fewer than three seeds" in report(repeated, alone, "HEAD")
    nothing = side({}, rows)
    assert report(nothing, nothing, "HEAD").endswith("nothing")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"mnist": {"lunet": {"bits_per_dim": {"mean": NaN}}}}', '{"a": {"mean": "x"}}']
)
def test_damaged_metrics_are_reported(text: str) -> None:
    with pytest.raises(UserError, match="the reports of HEAD are damaged"):
        read_side({"metrics.json": text}.get, "HEAD")


# With git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with metrics in a subfolder that were committed and then changed."""
    folder = tmp_path / "sub"
    (folder / "reports").mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "empty")
    write(folder, 1.8)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "--quiet", "-m", "metrics")
    write(folder, 1.9)
    return folder


def write(folder: Path, *samples: float) -> None:
    metrics = {"mnist": {"lunet": {"bits_per_dim": figure(*samples)}}}
    (folder / "reports/metrics.json").write_text(json.dumps(metrics))
    (folder / "reports/results.csv").write_text(RESULTS + "mnist,lunet,0,all,complete,10000,0.3\n")


def git(folder: Path, *arguments: str) -> str:
    options = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *options, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pipeline.compare", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("revision", ["HEAD", "a-tag", "an-experiment"])
def test_the_workspace_is_compared_with_a_revision(repository: Path, revision: str) -> None:
    git(repository, "tag", "a-tag")
    git(repository, "update-ref", "refs/exps/ab/cdef/an-experiment", "HEAD")
    status, said = run(repository, revision)
    assert status == 0
    assert f"the workspace against {revision}" in said
    (row,) = [line.split() for line in said.splitlines() if line.startswith("mnist.lunet")]
    assert row[:5] == ["mnist.lunet", "bits_per_dim", "1.8", "1.9", "0.1"]
    assert float(row[5]) == pytest.approx(1.96 * 0.003 * 2**0.5, rel=1e-3)
    assert row[6:] == ["larger", "than", "the", "noise"]
    assert "Rule: larger than the noise is" in said


@pytest.mark.parametrize(
    ("revision", "words"),
    [("nowhere", "nowhere is no revision of git"), ("--all=3", "error: "), ("HEAD~1", "HEAD~1 has no reports/metrics")],
)
def test_an_unknown_revision_is_refused(repository: Path, revision: str, words: str) -> None:
    status, said = run(repository, revision)
    assert status in (1, 2)
    assert words in said


def test_no_git_no_repository_no_metrics(repository: Path, tmp_path: Path) -> None:
    status, said = run(repository, "HEAD", PATH=str(tmp_path / "nothing"))
    assert (status, "git is not on this machine" in said) == (1, True)
    shutil.rmtree(tmp_path / ".git")
    status, said = run(repository, "HEAD", GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert (status, "no git repository" in said) == (1, True)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "--quiet", "-m", "metrics")
    (repository / "reports/metrics.json").unlink()
    status, said = run(repository, "HEAD")
    assert (status, "the workspace has no reports/metrics.json" in said) == (1, True)
