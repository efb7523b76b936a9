"""The presets: `laptop.yaml`, and the changes that each other preset makes to it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core.params import Params, Preset, read_yaml, validate

PRESETS = Path(__file__).parent
BASE: Preset = "laptop"


def preset_text(name: Preset) -> str:
    """The whole parameter file of a preset, with the comments of `laptop.yaml`, in DVC's format.

    In this format, `dvc exp run -S` of one value changes one line.
    """
    text = (PRESETS / f"{BASE}.yaml").read_text(encoding="utf-8")
    if name == BASE:
        return text
    changes = PRESETS / f"{name}.yaml"
    yaml, merged = YAML(), StringIO()
    yaml.default_flow_style = False
    values = yaml.load(text)
    _merge(values, read_yaml(changes))
    yaml.dump(values, merged)
    return _headline(changes.read_text(encoding="utf-8")) + merged.getvalue().removeprefix(_headline(text))


def preset_values(name: Preset) -> dict[str, Any]:
    """A preset as plain values."""
    values: dict[str, Any] = YAML(typ="safe", pure=True).load(preset_text(name))
    return values


def load_preset(name: Preset) -> Params:
    """A preset, validated."""
    return validate(preset_values(name), f"the preset {name}")


def _merge(values: MutableMapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Apply changes to values in place, section by section."""
    for key, change in changes.items():
        if isinstance(change, Mapping) and isinstance(values.get(key), MutableMapping):
            _merge(values[key], change)
        else:
            values[key] = change


def _headline(text: str) -> str:
    """The first line, a comment that says what the preset is for."""
    return text.splitlines(keepends=True)[0]
