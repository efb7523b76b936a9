"""Writes a preset into `params.yaml` and shows what changed, or checks `params.yaml`."""

from __future__ import annotations

import difflib

from pipeline.core.console import command_parser, exit_with, say
from pipeline.core.files import write_text
from pipeline.core.params import load_params, refusal
from pipeline.presets.merged import PRESETS, load_preset, preset_text


def main() -> None:
    """Write the preset that the command line names, or check the parameter file."""
    parser = command_parser(
        "preset",
        "Write a complete set of parameters, comments included, and print what changes. The presets: "
        + " ".join(f"{name}: {purpose}" for name, purpose in PRESETS.items()),
        example="laptop",
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("preset", nargs="?", choices=PRESETS)
    task.add_argument("--check", action="store_true", help="write nothing; report every mistake in the parameter file")
    arguments = parser.parse_args()
    if arguments.check:
        # DVC reads a parameter only when a stage needs it, perhaps minutes later.
        from pipeline.training.models import check  # imports torch, seconds that writing a preset does not need

        params = load_params(arguments.params)
        if params.preset not in PRESETS:
            raise refusal(str(arguments.params), [f"preset: is {params.preset!r}; there are: {', '.join(PRESETS)}"])
        if params.measure.datasets is None:
            raise refusal(str(arguments.params), ["measure.datasets: is missing; give data sets, such as [mnist]"])
        check(params, str(arguments.params))
        say(f"{arguments.params} has no mistakes")
        return
    name, path = arguments.preset, arguments.params
    load_preset(name)
    text = preset_text(name)
    # The file that is replaced may be damaged.
    old = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    write_text(path, text)
    sides = (f"{path} before", f"{path} now")
    difference = list(difflib.unified_diff(old.splitlines(), text.splitlines(), *sides, lineterm="", n=1))
    say("\n".join(difference) or f"{path} already is the preset {name}")


if __name__ == "__main__":
    exit_with(main)
