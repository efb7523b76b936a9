"""The report as HTML, rendered from the collected results and the templates."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError
from markupsafe import Markup
from ruamel.yaml import YAML

from pipeline.core.console import UserError
from pipeline.core.files import read_json
from pipeline.page.effort import read_effort
from pipeline.page.evidence import evidence_of, margin, raw_seeds
from pipeline.page.published_tables import read_benchmark, read_sweeps
from pipeline.results import looks
from pipeline.results.claims import DECISIONS, LABELS
from pipeline.results.reading import SHOWN, Grid
from pipeline.results.statistics import format_number
from pipeline.results.tables import by_dataset, read_table, with_none

COLLECT = "python -m pipeline.collect (or dvc repro)"
TEMPLATES = Path(__file__).with_name("templates")
# What `render` raises, besides `UserError`, if a file holds something else than collect writes.
DAMAGES = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, TemplateError)
# Keys that the files of collect must contain; metrics and timings have a key for each data set.
PROVENANCE = (
    "cells", "commands", "datasets", "differences", "environments", "intervals", "params", "preset", "recipes", "seeds"
)  # fmt: skip
CLAIMS = ("claims", "conversion", "paper", "poster", "principle", "references")
COMPARISON = ("likelihood", "runs", "timings", "verdicts", "warnings")
TIMES = {f"{name}_ms": title.removesuffix(", per image").capitalize() for name, title in looks.TIMES.items()}


def render(reports: Path, title: str) -> str:
    """The report as HTML; equal files give equal text.

    Args:
        reports: The folder that collect has written.
        title: The page's title.

    Raises:
        UserError: If a file is missing or damaged.
    """
    provenance = read_content(reports / "provenance.json", PROVENANCE)
    claims = read_content(reports / "claims.json", CLAIMS)
    metrics = read_content(reports / "metrics.json", provenance["datasets"])
    medians = read_content(reports / "timings.json", provenance["datasets"])
    mixture = read_content(reports / "mixture.json", SHOWN)
    results, measured = read_table(reports / "results.csv"), read_table(reports / "timings.csv")
    timings = by_dataset(measured)
    latents = read_table(reports / "latents.csv").drop_duplicates(["dataset", "recipe", "seed"])
    add_raw_values(metrics, medians, results, timings)
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    verdicts = [claim["label"] for claim in claims["claims"]]
    params = provenance["params"]["recipes"]
    return template(reports).render(
        title=title,
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        **{key: claims[key] for key in ("conversion", "paper", "principle", "references")},
        poster={row["quantity"]: row for row in claims["poster"]},
        chosen_on_test=[
            look["label"]
            for name, look in provenance["recipes"].items()
            if (params[name]["training"] or {}).get("holdout") == "test"
        ],
        claims=[claim_view(claim) for claim in claims["claims"]],
        judged_on=[row["title"] for row in next(claim for claim in claims["claims"] if not claim["once"])["datasets"]],
        counts={label: verdicts.count(label) for label in LABELS.values() if label in verdicts},
        provenance=provenance,
        stages={row["stage"]: row for row in provenance.get("stages", [])},
        recipes=provenance["recipes"],
        one_a_class=[name for name in provenance["recipes"] if params[name]["classes"] == "each"],
        devices=sorted({group["environment"]["device"] for group in provenance["environments"]}),
        failures=[cell for cell in provenance["cells"] if cell["status"] != "complete"],
        times=TIMES,
        mixture=mixture,
        warnings={"results": mixtures(results), "timings": mixtures(measured)},
        others=read_content(reports / "comparison.json", COMPARISON),
        effort=read_effort(reports, provenance),
        benchmark=read_benchmark(reports / "published" / "benchmarks"),
        sweeps=read_sweeps(reports / "published" / "sweeps"),
        standard_error=standard_error(results),
        datasets=[
            {
                **dataset_view(name, reports / "figures", provenance, results, latents, timings),
                "metrics": metrics[name],
                "timings": medians[name],
                "poster": [poster_row(row, metrics[name], medians[name]) for row in claims["poster"]],
            }
            for name in provenance["datasets"]
        ],
    )


def template(reports: Path) -> Template:
    """The template of the page, which embeds the figures in ``reports``."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "number": number,
        "day": lambda time: time[:16].replace("T", " ") + " UTC",
        "duration": duration,
        "margin": margin,
        "yaml": as_yaml,
    }
    environment.filters |= filters
    environment.globals |= {
        "count": itertools.count(1).__next__,
        "svg": lambda name, alt: inline_svg(reports / "figures" / name, alt),
        "drawing": lambda path, alt: inline_svg(reports / path, alt),
        "png": lambda name: data_uri(reports / "figures" / name),
    }
    return environment.get_template("page.html")


def add_raw_values(
    metrics: Mapping[str, Any], medians: Mapping[str, Any], results: pd.DataFrame, timings: pd.DataFrame
) -> None:
    """Give each mean over seeds in `metrics.json`, and each median in `timings.json`, the raw values behind it."""
    whole = results[results["class"] == "all"].rename(columns={"bits_per_dim_mean": "bits_per_dim"})
    for quantity in ("bits_per_dim", "bits_per_dim_median", "poster_bits_per_pixel"):
        for (dataset, recipe), rows in whole.dropna(subset=[quantity]).groupby(["dataset", "recipe"]):
            metrics[str(dataset)][str(recipe)][quantity]["raw"] = raw_seeds(rows, quantity)
    for (dataset, recipe, time, unit), values in timings.groupby(["dataset", "recipe", "quantity", "unit"])["value"]:
        if median := medians[str(dataset)][str(recipe)].get(f"{time}_{unit}"):
            median["raw"] = {"what": unit, "values": values.tolist()}


def read_content(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """The content of a JSON file of collect.

    Raises:
        UserError: If the file is missing or damaged, or lacks one of the keys.
    """
    content: dict[str, Any] = read_json(path)
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path} is damaged, it lacks {', '.join(missing)}: write it again with {COLLECT}")
    return content


def dataset_view(
    name: str,
    folder: Path,
    provenance: Mapping[str, Any],
    results: pd.DataFrame,
    latents: pd.DataFrame,
    timings: pd.DataFrame,
) -> dict[str, Any]:
    """The values that the page shows for one data set, but for its metrics and timings.

    Args:
        name: The data set.
        folder: The folder of the figures.
        provenance: The content of `provenance.json`.
        results: The table of all results.
        latents: The table of all latents, a row for each seed.
        timings: The table of all measurements, with rows for each data set.
    """
    recipes, params = provenance["recipes"], provenance["params"]["recipes"]
    rows = results[results["dataset"] == name]
    cells = rows[(rows["class"] == "all") & rows["bits_per_dim_mean"].notna()].copy()
    cells["half"] = (cells["bits_per_dim_draws_high"] - cells["bits_per_dim_draws_low"]) / 2
    draws = cells.groupby("recipe").agg(worst=("worst_percent_share", "mean"), n=("draws", "min"), half=("half", "max"))
    # Means over the complete seeds.
    classes = rows[rows["class"] != "all"].pivot_table(
        "bits_per_dim_mean", ["class", "class_name"], "recipe", sort=False
    )
    others = timings.loc[(timings["dataset"] == name) & (timings["measured"] != name), "measured"].unique()
    figures: dict[str, str | None] = defaultdict(lambda: None)
    figures |= {path.stem.removesuffix(f"-{name}"): path.name for path in folder.glob(f"*-{name}.svg")}
    # The machines of gradient training.
    machines = {
        (group["environment"]["host"], group["environment"]["device"])
        for group in provenance["environments"]
        for key in group["cells"].get("train", [])
        for recipe in recipes
        if params[recipe]["training"] is not None and key.rpartition("-")[0] == f"{name}-{recipe}"
    }
    return {
        "name": name,
        "info": provenance["datasets"][name],
        "latents": latents[latents["dataset"] == name].to_dict("records"),
        "draws": with_none(draws.reindex(list(recipes)).astype({"n": "Int64"})).to_dict("index"),
        "machines": len(machines),
        "measured_on": [provenance["datasets"].get(other, {"title": other})["title"] for other in others],
        "classes": with_none(classes.reindex(columns=list(recipes))).to_dict("index"),
        "figures": figures,
        **evidence_of(rows, list(recipes)),
        **{
            grid: [recipe for recipe in recipes if (folder / f"{grid}-{name}-{recipe}.png").is_file()]
            for grid in get_args(Grid)
        },
    }


def standard_error(results: pd.DataFrame) -> float | None:
    """The largest standard error of a mean over test images among all models, in bits/dim; None without results."""
    whole = results[results["class"] == "all"]
    error = (whole["bits_per_dim_std"] / whole["images"].astype("float64").pow(0.5)).max()
    return None if pd.isna(error) else float(error)


def poster_row(row: Mapping[str, Any], metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the poster's table with our figures: the honest one, and the one measured as the poster did."""
    figures = [metrics.get(recipe, {}) | timings.get(recipe, {}) for recipe in ("lunet", "realnvp")]
    printed = [found.get(row["stopwatch"]) for found in figures]
    scaled = [(time["images"], time["of"]) for time in printed if time and time.get("images", 0) < time.get("of", 0)]
    return {
        **row,
        "honest": [found.get(row["ours"]) for found in figures],
        "printed": printed,
        "scaled": next(iter(scaled), None),
    }


def claim_view(claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim with its evidence by row, and whether any data set decides it."""
    decided = any(dataset["verdict"] in DECISIONS for dataset in claim["datasets"])
    return {**claim, "evidence": evidence_rows(claim), "decided": decided}


def evidence_rows(claim: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A claim's evidence, a row for each number and a column for each data set; a missing number is None."""
    columns = [{item["name"]: item for item in dataset["evidence"]} for dataset in claim["datasets"]]
    labels = {name: item for column in columns for name, item in column.items()}
    return [{**item, "values": [column.get(name) for column in columns]} for name, item in labels.items()]


def mixtures(table: pd.DataFrame) -> list[str]:
    """Warnings about a table with several machines, devices or states of the code, which should each be the same."""
    warnings = []
    for name, label in {"host": "machines", "device": "devices", "commit": "states of the code"}.items():
        values = sorted(table[name].dropna().unique())
        if len(values) > 1:
            warnings.append(f"This table mixes {len(values)} {label}: {', '.join(values)}.")
    if table["commit"].str.endswith("+").any():
        warnings.append("Some rows come from code with changes that were not committed (marked +).")
    return warnings


def number(value: float | None, digits: int = 4) -> str:
    """A number for readers, or a dash for None."""
    return "–" if value is None else format_number(value, digits)


def as_yaml(value: Any, *, sort: bool = False) -> str:
    """A value as block YAML, with the keys of each mapping in their order or sorted."""
    text = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = sort  # type: ignore[assignment]
    writer.dump(value, text)
    return text.getvalue().removesuffix("...\n")


def duration(seconds: float) -> str:
    """A time for readers: in seconds below two minutes, then in minutes and seconds, then in hours and minutes."""
    whole = round(seconds)
    if whole < 120:
        return f"{format_number(seconds, 2)} s" if seconds < 9.95 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def data_uri(path: Path) -> str:
    """A PNG as a data URI."""
    content = _bytes(path)
    if not (content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")):
        raise UserError(f"{path} is damaged: write it again with {COLLECT}")
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def inline_svg(path: Path, alt: str) -> Markup:
    """A figure for inlining: its ids become unique, its ink the text colour, and the page sets its size."""
    text = _bytes(path).decode("utf-8", errors="replace")
    body = text[text.find("<svg") :]
    box = re.search(r'viewBox="[\d. ]+"', body)
    if box is None or not body.rstrip().endswith("</svg>"):
        raise UserError(f"{path} is not a figure of collect, or a damaged one: write it again with {COLLECT}")
    inner = body[body.index(">") + 1 :]
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'\bid="', f'id="{path.stem}-', inner)
    inner = re.sub(r"url\(#", f"url(#{path.stem}-", inner)
    inner = re.sub(r'xlink:href="#', f'href="#{path.stem}-', inner)
    inner = inner.replace(looks.INK, "currentColor")
    opening = Markup('<svg xmlns="http://www.w3.org/2000/svg" {} role="img" aria-label="{}">')
    return opening.format(Markup(box[0]), alt) + Markup(inner)  # noqa: S704 - drawn by collect, which escapes text


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: write it with {COLLECT}") from None
