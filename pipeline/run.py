"""Runs the pipeline without DVC: the most valuable cells first, within a time limit, and no cell twice."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from pipeline.core.cell import COMMANDS
from pipeline.core.console import StopRequest, UserError, command_parser, exit_with, say
from pipeline.core.files import check_writable, write_text
from pipeline.core.params import Params, load_params, read_yaml, validate
from pipeline.page.view import as_yaml
from pipeline.presets.merged import PRESETS, preset_values
from pipeline.results.reading import RECORDS, CellStatus, read_record
from pipeline.runner import plan as planning
from pipeline.runner.archive import LARGEST_FILE, code_digests, descriptions, epochs_of, pack
from pipeline.runner.merging import Published
from pipeline.runner.plan import (
    Budget,
    Gate,
    advice,
    decision,
    gate_inputs,
    in_order,
    read_gate,
    try_variants,
)
from pipeline.runner.processes import run_while
from pipeline.runner.steps import Ledger, Step, read_steps

CELLS, DEFAULT = tuple(COMMANDS), Path("params.yaml")
RUNS, ARCHIVE = Path("runs"), "run.tar.gz"
LOCK = RUNS / ".run.lock"
TIME_IS_UP = 3
GATE_SECONDS = 60.0


class TimeIsUpError(UserError):
    """A step was stopped because of the time limit."""


def main() -> None:
    """Run the grid as the command line says."""
    parser = command_parser(
        "run",
        "Run every stage of dvc.yaml for the whole grid of the parameter file, without DVC. What is done "
        "already, from the same parameters, code and data, is not done again. The same command again goes on where the "
        f"last one was stopped. Ends with status 0 when all is done, {TIME_IS_UP} when time was up before, 1 when a "
        "cell failed.",
        example="--plan paper --time-limit 590 --out archive",
    )
    limits = f"end within this time, {planning.SHORTEST:g} at least"
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS", help=limits)
    parser.add_argument(
        "--plan",
        metavar="PRESET",
        help="take the parameters of a preset, or of another parameter file, and leave params.yaml alone; begin with "
        f"a choice of the fastest way to train {planning.GATED} that is exact enough on this machine",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"keep what is done so far packed in FOLDER/{ARCHIVE}, at any time"
    )
    parser.add_argument(
        "--published", type=Path, metavar="FOLDER", help="leave out what is complete in this published run"
    )
    arguments = parser.parse_args()
    started = time.monotonic() - (time.time() - psutil.Process().create_time())
    if not arguments.time_limit >= (least := planning.SHORTEST):
        raise UserError(f"--time-limit must be at least {least:g} seconds, to stop a training, evaluate it and pack")
    if arguments.plan and arguments.params != DEFAULT:
        raise UserError("--plan and --params are both given; --plan takes a parameter file too, so give one of the two")
    if arguments.out:
        check_writable(arguments.out, "--out")
    budget = Budget(arguments.time_limit, begin=started)
    published = Published.read(arguments.published) if arguments.published else None
    RUNS.mkdir(exist_ok=True)
    try:
        with FileLock(LOCK, timeout=0), StopRequest() as request:
            path = write_plan(arguments.plan, published) if arguments.plan else arguments.params
            runner = Runner(path, budget, request, arguments.out, published, gated=bool(arguments.plan))
            status = runner.run()
            if arguments.out:
                options = f" --params {path}" if path not in (DEFAULT, planning.PLANNED) else ""
                options = f" --plan {arguments.plan}" if arguments.plan else options
                for line in advice(arguments.out / ARCHIVE, options, arguments.published, done=status == 0):
                    say(line)
    except Timeout:
        raise UserError("another python -m pipeline.run is at work in this folder; wait for its end") from None
    sys.exit(status)


def write_plan(plan: str, published: Published | None) -> Path:
    """Write the parameters of a preset or of a parameter file as those of the run.

    Recipes of which a published run has cells keep its settings, so that their figures stay those of one recipe.
    """
    if plan not in PRESETS and not Path(plan).is_file():
        raise UserError(f"--plan: {plan} is no parameter file and no preset; the presets are {', '.join(PRESETS)}")
    values = preset_values(plan) if plan in PRESETS else read_yaml(Path(plan))
    params = validate(values, plan)
    own = {name: published.recipe(name) for name in published.recipes & params.recipes.keys()} if published else {}
    for name, recipe in own.items():
        if recipe != params.recipe(name).model_dump(mode="json"):
            say(f"{name}: with the settings of the published run, which differ from those of {plan}")
    values["recipes"] |= own
    write_text(planning.PLANNED, as_yaml(values))
    return planning.PLANNED


class Runner:
    """Runs steps one after the other while the budget lasts, and packs the results after each.

    Args:
        path: The parameter file.
        budget: The time there is.
        request: The request to stop at once.
        out: The folder of the archive; without one, nothing is packed, and a finished grid is collected and rendered.
        published: A published run, whose complete cells are left out.
        gated: Whether the gate chooses how to train, and writes that into the parameter file.
    """

    def __init__(
        self,
        path: Path,
        budget: Budget,
        request: StopRequest,
        out: Path | None = None,
        published: Published | None = None,
        *,
        gated: bool = False,
    ) -> None:
        self._path, self._budget, self._request = path, budget, request
        self._out, self._published, self._gated = out, published, gated
        self._fixes_arithmetic = published is not None and planning.GATED in published.recipes
        self._failed: dict[str, int] = {}
        self.has_data = cache(self._make_data)
        self._load()
        if published is not None:
            published.check_compatible(self._params)
            if published.manifest.code != code_digests():
                say(f"{published.folder} was made with other code")

    def _load(self) -> None:
        """Read the parameter file, and the steps that it describes."""
        self._params: Params = load_params(self._path)
        values = read_yaml(self._path)
        self._steps = read_steps(values)
        self._ledger = Ledger(self._steps, values)
        self._mixture = next(step for step in self._steps if step.stage == "mixture")
        cells = [step for step in self._steps if step.stage in CELLS]
        self._cells = in_order(cells, self._params)
        self._evaluations = {step.key: step for step in cells if step.stage == "evaluate"}
        self._trainings = {step.key: step for step in cells if step.stage == "train"}

    def run(self) -> int:
        """Run all steps that are not done; returns the exit status.

        Raises:
            UserError: If a cell failed, or needs longer than the time limit.
            StoppedError: If a signal asked for a stop.
        """
        if self._gated:
            self._choose_arithmetic()
        in_time = self._run_cells() and self._run_mixture()
        self._pack()
        cells = [step for step in self._cells if not self._is_published(step)]
        done = [step for step in cells if self._ledger.is_done(step)]
        if len(done) == len(cells) and self._out is None:
            self._report()
        if in_time and not self._failed:
            self._event(f"all {len(cells)} cells are done")
            return 0
        names = "; ".join(f"{name} (exit status {status})" for name, status in self._failed.items())
        failures = f"failed, with messages above: {names}"
        if in_time:
            raise UserError(f"{len(done)} of {len(cells)} cells done; {failures}")
        if self._failed:
            self._event(failures)
        self._event(f"{len(done)} of {len(cells)} cells done; run the same command again")
        return TIME_IS_UP

    def _event(self, text: str) -> None:
        """Print a line that begins with the second."""
        say(f"[{self._budget.elapsed:4.0f} s] {text}")

    def _is_published(self, step: Step) -> bool:
        return self._published is not None and self._published.has(step.stage, step.key)

    def _make_data(self, dataset: str) -> bool:
        """Make a data set, or check that it is whole; a failure leaves out its cells alone."""
        for step in self._steps:
            if step.stage == "data" and step.item["dataset"] == dataset and (status := self._call(step)) != 0:
                self._failed[str(step)] = status
                self._event(f"{step} failed, and none of its cells can run")
                return False
        return True

    def _run_cells(self) -> bool:
        """Run the cells that are not done; returns whether time sufficed."""
        begun, in_time = 0, True
        for number, step in enumerate(sorted(self._cells, key=self._turn), 1):
            if self._is_published(step) or self._ledger.is_done(step):
                continue
            if step.stage == "evaluate" and not self._ledger.is_done(self._trainings[step.key]):
                continue
            if self._budget.left(step) < planning.WORTHWHILE:
                in_time = False  # a later step may need less
                continue
            was_stopped = self._turn(step) > 0
            begun += 1
            try:
                if not self.has_data(step.key.dataset):
                    continue
                self._event(f"[{number}/{len(self._cells)}] {step}")
                self._run_step(step)
            except TimeIsUpError:
                if begun == 1 and was_stopped:
                    raise
                self._event(f"{step} was stopped")
                if step.stage == "train":
                    self._keep_finished_classes(step)
                return False
        return in_time

    def _run_step(self, step: Step) -> None:
        """Run a step to its end, and pack what it has brought, but for a training, whose evaluation follows."""
        self._ledger.begin(step)
        before = self._budget.elapsed
        status = self._call(step)
        if status != 0:
            self._failed[str(step)] = status
            return
        self._ledger.finish(step)
        if step.stage == "evaluate":
            recipe, seconds = step.key.recipe, self._budget.elapsed - before
            self._budget.evaluating[recipe] = max(seconds, self._budget.evaluating.get(recipe, 0.0))
        if step.stage != "train":
            self._pack()

    def _keep_finished_classes(self, training: Step) -> None:
        """Write and evaluate the classes that a stopped training has finished, in the time that was kept for it."""
        if self._params.recipe(training.key.recipe).classes != "each":
            return
        evaluation = self._evaluations[training.key]
        with contextlib.suppress(TimeIsUpError):
            if self._call(training, "--finished", reserved=True) != 0:
                return
            record = read_record(RECORDS["train"], RUNS, self._params, training.key)
            self._ledger.finish(training, partial=record.status == "partial")
            self._event(f"{training}: {record.message}")
            self._pack()
            self._ledger.begin(evaluation)
            if self._call(evaluation, reserved=True) == 0:
                self._ledger.finish(evaluation, partial=record.status == "partial")

    def _run_mixture(self) -> bool:
        """Run the experiment in two dimensions, the last of all; returns whether time sufficed."""
        if (self._published is not None and self._published.has_mixture) or self._ledger.is_done(self._mixture):
            return True
        try:
            self._event(str(self._mixture))
            self._run_step(self._mixture)
        except TimeIsUpError:
            return False
        return True

    def _report(self) -> None:
        for step in self._steps:
            if step.stage in ("collect", "report") and self._call(step) != 0:
                raise UserError(f"the stage {step} failed; its message is above, and what was trained is kept")

    def _turn(self, step: Step) -> float:
        """The sort key of a step: the time it began if it was stopped and has to start again, else 0.

        Stopped steps come last; otherwise a cell that exceeds the time limit would block all cells after it.
        """
        stopped = step.stage == "measure" or (
            step.stage == "evaluate" and self._ledger.is_done(self._trainings[step.key])
        )
        return step.note.stat().st_mtime if stopped and self._ledger.is_begun(step) else 0.0

    def _pack(self) -> None:
        """Replace the archive by one of everything that is there; a failure leaves the older one."""
        if self._out is None:
            return
        begin = self._budget.elapsed
        statuses = [self._status(step) for step in self._cells]
        steps = [step for step, cell in zip(self._cells, statuses, strict=True) if cell.has_record]
        files = [file for step in (self._mixture, *steps) for file in self._ledger.results(step)]
        if planning.GATE.exists():
            files.append(planning.GATE)
        try:
            size = pack(self._out / ARCHIVE, self._params, files, statuses, descriptions(self._params))
        except (UserError, OSError) as error:
            self._event(f"warning: {error}")
            return
        seconds = self._budget.elapsed - begin
        self._budget.packing = 1.5 * seconds + 0.5
        self._event(f"packed {len(steps)} of {len(self._cells)} cells, {size / 1e6:.1f} MB, in {seconds:.1f} s")

    def _status(self, step: Step) -> CellStatus:
        recipe = self._params.recipes[step.key.recipe]
        planned = recipe.training.epochs if step.stage == "train" and recipe.training else None
        cell: dict[str, Any] = {"stage": step.stage, **step.key._asdict(), "planned_epochs": planned}
        files = self._ledger.results(step)
        trained = step.stage != "evaluate" or bool(self._ledger.results(self._trainings[step.key]))
        large = [file for file in files if file.stat().st_size > LARGEST_FILE]
        if files and trained and not large:
            record = read_record(RECORDS[step.stage], RUNS, self._params, step.key)
            return CellStatus(**cell, status=record.status, message=record.message, epochs=epochs_of(record))
        if large:
            return CellStatus(**cell, status="failed", message=f"{large[0]} is larger than {LARGEST_FILE:,} bytes")
        if str(step) in self._failed:
            return CellStatus(**cell, status="failed", message=f"exit status {self._failed[str(step)]}")
        if self._is_published(step):
            return CellStatus(**cell, status="missing", message="complete in an earlier run")
        begun = self._ledger.is_begun(step)
        return CellStatus(**cell, status="missing", message="begun, and not finished" if begun else "not begun")

    def _choose_arithmetic(self) -> None:
        """Let the gate choose how the gated recipe is trained, and write that into the parameter file."""
        recipe = self._params.recipes.get(planning.GATED)
        steps = [step for step in self._cells if step.stage == "train" and step.key.recipe == planning.GATED]
        waiting = [step for step in steps if not (self._is_published(step) or self._ledger.is_done(step))]
        dataset = next((name for name in dict.fromkeys(s.key.dataset for s in waiting) if self.has_data(name)), None)
        if recipe is None or recipe.training is None or dataset is None:
            return
        inputs = gate_inputs(recipe, dataset, fixed=self._fixes_arithmetic)
        gate = read_gate()
        if gate is None or gate.inputs != inputs:
            self._event(f"gate: {planning.GATED} on {dataset}")
            gate = self._try_variants(dataset, inputs)
        if gate is None:
            self._event(f"gate: no variant was tried to its end; {planning.GATED} is trained as its recipe says")
            return
        values = read_yaml(self._path)
        training_values = values["recipes"][planning.GATED]["training"]
        if self._fixes_arithmetic:
            if gate.of(training_values).trials:
                gate = gate.of(training_values)
            else:
                self._event("gate: the published recipe cannot be trained so here; publish this run by another name")
        training_values |= gate.chosen.settings
        write_text(self._path, as_yaml(values))
        self._load()
        training = next(step for step in self._cells if step.key.recipe == planning.GATED and step.stage == "train")
        second = Budget(planning.SECOND_CALL, self._budget.clock).left(training) - planning.STARTING
        self._event(decision(gate, self._budget.left(training) - planning.BEFORE, second))

    def _try_variants(self, dataset: str, inputs: str) -> Gate | None:
        """Run the gate, for a limited time; what it has recorded until then counts."""
        end = self._budget.elapsed + GATE_SECONDS
        is_allowed = lambda: self._request.signal is None and self._budget.elapsed < end  # noqa: E731
        status = try_variants(self._path, dataset, inputs, is_allowed, fixed=self._fixes_arithmetic)
        self._request.heed("the gate is not done; the same command starts it again")
        if status != 0:
            self._event(f"gate: ended with status {status}; what it recorded before counts")
        return read_gate()

    def _command(self, step: Step) -> list[str]:
        """The command of a step with this interpreter and this parameter file."""
        python, *arguments = step.command
        options = [] if self._path == Path("params.yaml") else ["--params", str(self._path)]
        return [sys.executable if python == "python" else python, *arguments, *options]

    def _call(self, step: Step, *options: str, reserved: bool = False) -> int:
        """Run a step's command to its end and return its exit status.

        Args:
            step: The step.
            options: More arguments.
            reserved: Whether the time may be used that is kept back for what follows a training.

        Raises:
            TimeIsUpError: If it was stopped at the deadline.
            StoppedError: If it was stopped because of a signal.
        """
        until = None if reserved else step
        status = run_while(
            [*self._command(step), *options],
            lambda: self._request.signal is None and self._budget.left(until) >= 0,
        )
        self._request.heed(f"{step} is not done; what is done is kept, and the same command goes on from there")
        if status != 0 and self._budget.left(until) < 0:
            raise TimeIsUpError(f"{step} needs more time than --time-limit leaves it; give more")
        return status


if __name__ == "__main__":
    exit_with(main)
