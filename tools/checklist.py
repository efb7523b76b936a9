"""Writes docs/checklist.md, what a reviewer may ask, from the results: python -m tools.checklist --help."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.noise import spreads
from pipeline.core.console import UserError, exit_with, say
from pipeline.core.files import read_json
from pipeline.core.params import read_yaml
from pipeline.page.effort import read_effort
from pipeline.presets.merged import load_preset

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs/checklist.md"
REASONS = Path(__file__).with_name("deviations.yaml")


def main() -> None:
    """Write the document."""
    argparse.ArgumentParser(
        prog="python -m tools.checklist",
        description="Write docs/checklist.md from the results in reports/, the preset laptop, and the reasons in "
        "tools/deviations.yaml. Run it after a run that is to be committed.",
    ).parse_args()
    FILE.write_text(checklist(ROOT / "reports"), encoding="utf-8")
    say(f"written to {FILE.relative_to(ROOT)}")


def checklist(reports: Path) -> str:
    """The document about the results in a folder."""
    provenance, published = read_json(reports / "provenance.json"), reports / "published"
    recipes, reasons = load_preset("laptop").model_dump(mode="json")["recipes"], read_yaml(REASONS)
    effort = read_effort(reports, provenance)
    sweeps = {path.stem: pd.read_csv(path) for path in sorted(published.glob("sweeps/*.csv"))}
    trained = pd.concat(sweeps.values())["recipe"].str.partition("_")[0].value_counts()
    environment = Environment(
        loader=FileSystemLoader(ROOT / "tools"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown
    )
    return environment.get_template("checklist.md.j2").render(
        deviations={name: deviations(recipes, name, reasons[name]) for name in reasons},
        added=[f"`{name}`" for name in recipes if name not in reasons and not name.endswith("_released")],
        draws={preset: load_preset(preset).evaluate.draws for preset in ("laptop", "overnight")},
        effort=effort,
        gpu=effort[-1].gpu_hours > 0,
        searched={name: int(trained.get(name, 0)) for name in ("lunet", "realnvp")},
        sweeps=[sweep(name, table) for name, table in sweeps.items()],
        seeds=provenance["seeds"],
        shared_noise=[path.name for path in sorted(published.iterdir()) if has_shared_noise(path)],
        noise=noise(published / "benchmarks/noise.csv"),
        datasets=provenance["datasets"].values(),
    )


def deviations(recipes: Mapping[str, Any], name: str, reasons: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings in which a recipe differs from a released one, a row for each reason.

    Raises:
        UserError: If a setting has no reason.
    """
    ours, released = flat(recipes[name]), flat(recipes[reasons["against"]])
    differing = [key for key in {**ours, **released} if ours.get(key) != released.get(key)]
    known = {key for entry in reasons["reasons"] for key in entry["settings"]}
    if unknown := [key for key in differing if key not in known]:
        raise UserError(
            f"{name} differs from {reasons['against']} in {', '.join(unknown)}, without a reason; add one to "
            f"{REASONS.relative_to(ROOT)}"
        )
    rows = []
    for entry in reasons["reasons"]:
        if keys := [key for key in entry["settings"] if key in differing]:
            sides = {"ours": ours, "released": released}
            values = {side: [shown(of.get(key)) for key in keys] for side, of in sides.items()}
            rows.append({"settings": [key.rpartition(".")[2] for key in keys], **values, "reason": entry["reason"]})
    return rows


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested sections by dotted key."""
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return values


def shown(value: Any) -> str:
    """A value for readers."""
    if isinstance(value, list):
        return " + ".join(map(shown, value))
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def sweep(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """What a sweep tried: each setting in which its trainings differ, with the range of its values."""
    rows = [flat(json.loads(changes)) for changes in table["changes"]]
    tried: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        # A training without a change of the setting has the value of its recipe.
        values = [row.get(key, "the recipe's") for row in rows]
        tried[key] = [value for number, value in enumerate(values) if value not in values[:number]]
    return {
        "name": name,
        "trainings": len(table),
        "datasets": [*table["dataset"].unique()],
        "seeds": [*table["seed"].unique()],
        "tried": [f"{key}: {bounds(values)}" for key, values in tried.items() if len(values) > 1],
    }


def bounds(values: list[Any]) -> str:
    """The smallest and the largest of more than two numbers, and all other values."""
    numbers = sorted(value for value in values if isinstance(value, int | float))
    others = [value for value in values if value not in numbers]
    low_to_high = [f"{numbers[0]:g} to {numbers[-1]:g}"] if len(numbers) > 2 else numbers
    return ", ".join(map(shown, [*low_to_high, *others]))


def has_shared_noise(folder: Path) -> bool:
    """Whether an evaluation of a published run is from before noise of training and test was kept apart."""
    return any(not read_json(path).get("separate_noise") for path in folder.glob("runs/evaluate/*.json"))


def noise(path: Path) -> list[dict[str, Any]]:
    """How far each test likelihood moves with the noise; empty without the table of `benchmarks.noise`."""
    if not path.exists():
        return []
    return [{str(name): value for name, value in row.items()} for row in spreads(pd.read_csv(path)).to_dict("records")]


if __name__ == "__main__":
    exit_with(main)
