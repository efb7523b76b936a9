"""A project whose stages copy made-up results instead of training, for the tests of the runner and of its archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fake_results import SMALL, Project, parameters
from ruamel.yaml import YAML

from pipeline.core.files import read_json, write_json
from pipeline.core.params import read_yaml, validate

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
# The script of every stage.
STAGE = "import sys\nfrom fake_stage import play\nsys.exit(play(*sys.argv[1:]))\n"


class Workshop:
    """A folder for `pipeline.run`, with a `dvc.yaml` whose stages log their calls and copy made-up results."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        (folder / "before").mkdir()
        self.project = Project(folder / "before", parameters(**{**SMALL, **changes}))
        (folder / "before/runs").rename(folder / "made")
        (folder / "before/data").rename(folder / "data")
        (folder / "stage.py").write_text(STAGE)
        (folder / "code.py").write_text("first")
        (folder / "lunet").mkdir()
        (folder / "lunet/__init__.py").touch()
        self.fault("nothing", 0)
        self.write_params(self.project.values)
        graph = read_yaml(ROOT / "dvc.yaml")
        for name, stage in graph["stages"].items():
            stage = stage.get("do", stage)
            data_deps = [dep for dep in stage["deps"] if dep.split("/")[0] not in ("lunet", "pipeline", "${item.path}")]
            stage["deps"] = [*data_deps, "code.py"] if name == "train" else data_deps
            if name in ("train", "evaluate", "measure"):
                stage["cmd"] = f"python stage.py {name} ${{key}}"
        graph["stages"]["data"]["do"]["cmd"] = "python -c pass"
        graph["stages"]["mixture"]["cmd"] = "python stage.py mixture mixture"
        write_yaml(folder / "dvc.yaml", graph)

    def write_params(self, values: Mapping[str, Any]) -> None:
        """Write the parameter file."""
        write_yaml(self.folder / "params.yaml", values)

    def change(self, dotted: str, value: Any) -> None:
        """Change one parameter."""
        values = read_yaml(self.folder / "params.yaml")
        *above, last = dotted.split(".")
        section = values
        for name in above:
            section = section[name]
        section[last] = value
        self.write_params(values)
        # A real training records its parameters, so the made-up one must too.
        recipes = validate(values, "the test").model_dump(mode="json")["recipes"]
        for path in (self.folder / "made/train").glob("*/run.json"):
            run = read_json(path)
            write_json(path, {**run, "recipe_params": recipes[run["recipe"]]})

    def fault(self, cell: str, fault: str | int) -> None:
        """Set the fault of one cell, such as "train mnist-lunet-0": "hang", or an exit status."""
        (self.folder / "faults.json").write_text(json.dumps({cell: fault}))

    def finished(self, number: int) -> None:
        """Set how many classes a training has finished when it is stopped."""
        (self.folder / "finished.txt").write_text(str(number))

    def done(self) -> list[str]:
        """The stages and cells called since the last call of this method."""
        log = self.folder / "log.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        log.write_text("")
        return lines

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the runner as a process that leads a new process group."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.run", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run the runner to its end, and return its exit status and output."""
        process = self.start(*arguments)
        output, _ = process.communicate()
        return process.returncode, output


def write_yaml(path: Path, values: Any) -> None:
    """Write plain values as YAML."""
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)
