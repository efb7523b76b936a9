"""The presets: `laptop.yaml`, and the changes that each other preset makes to it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core.params import Params, read_yaml, validate

FOLDER = Path(__file__).parent
BASE = "laptop"
# What each preset is for, from the comment in the first line of its file; the whole one is the first.
PRESETS = {
    path.stem: path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    for path in sorted(FOLDER.glob("*.yaml"), key=lambda path: (path.stem != BASE, path.stem))
}


def preset_text(name: str) -> str:
    """The whole parameter file of a preset, with the comments of `laptop.yaml`, in DVC's format.

    In this format, `dvc exp run -S` of one value changes one line.
    """
    yaml, merged = YAML(), StringIO()
    yaml.default_flow_style = False
    values = yaml.load(FOLDER / f"{BASE}.yaml")
    _merge(values, {} if name == BASE else read_yaml(FOLDER / f"{name}.yaml"))
    yaml.dump(values, merged)
    return f"# {PRESETS[name]}\n" + merged.getvalue().removeprefix(f"# {PRESETS[BASE]}\n")


def preset_values(name: str) -> dict[str, Any]:
    """A preset as plain values."""
    return YAML(typ="safe", pure=True).load(preset_text(name))


def load_preset(name: str) -> Params:
    """A preset, validated."""
    return validate(preset_values(name), f"the preset {name}")


def _merge(values: MutableMapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Apply changes to values in place, section by section."""
    for key, change in changes.items():
        if isinstance(change, Mapping) and isinstance(values.get(key), MutableMapping):
            _merge(values[key], change)
        else:
            values[key] = change
