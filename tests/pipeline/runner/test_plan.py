"""The plan of a run: the order of the cells, the time that each may take, and the decision after the gate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from workshop import ROOT

from pipeline.core.files import write_json
from pipeline.presets.merged import load_preset, preset_values
from pipeline.run import CELLS
from pipeline.runner import plan
from pipeline.runner.plan import Budget, Gate, Trial, advice, decision, gate_inputs, in_order, read_gate
from pipeline.runner.steps import Step, read_steps

FAST = Trial(precision="bfloat16", capture=True, compile=True, gradient_error=0.01)


def ordered(**grid: list[int]) -> list[str]:
    """The names of the paper's cells in their order."""
    values = preset_values("paper")
    values["grid"] |= grid
    params = load_preset("paper")
    params = params.model_copy(update={"grid": params.grid.model_copy(update=grid)})
    cells = [step for step in read_steps(values, ROOT / "dvc.yaml") if step.stage in CELLS]
    names = [str(step) for step in in_order(reversed(cells), params)]
    assert len(set(names)) == len(cells)
    return names


def test_what_is_worth_most_comes_first() -> None:
    names = ordered()
    first = ["measure mnist lunet", "measure mnist realnvp"]
    for dataset in ("mnist", "fashion_mnist"):
        for recipe in ("gaussian", "histogram", "lunet", "realnvp"):
            first += [f"{stage} {dataset} {recipe} 0" for stage in ("train", "evaluate")]
    for recipe in ("lunet_learned", "lunet_released", "realnvp_released"):
        for dataset in ("mnist", "fashion_mnist"):
            first += [f"{stage} {dataset} {recipe} 0" for stage in ("train", "evaluate")]
    assert names[: len(first)] == first
    assert all(name.startswith("measure ") for name in names[len(first) :])


def test_the_first_seed_comes_before_all_others() -> None:
    names = ordered(seeds=[3, 1])
    assert [name for name in names if name.endswith(" 1")] == names[-28:]
    assert names[2] == "train mnist gaussian 3"


def step_of(stage: str) -> Step:
    return Step(stage, {"dataset": "mnist", "recipe": "realnvp", "seed": 0}, (), (), (), ())


def test_a_training_leaves_time_to_evaluate_it_and_all_steps_leave_time_to_pack() -> None:
    budget = Budget(590, lambda: 75.0, begin=0.0)
    assert budget.left(step_of("train")) == 590 - 75 - (3 + 8 + 30 + 1)
    assert budget.left(step_of("evaluate")) == budget.left() == 590 - 75 - (3 + 1)
    budget.evaluating["realnvp"], budget.packing = 20.0, 1.5
    assert budget.left(step_of("train")) == 590 - 75 - (3 + 8 + 20 + 1.5)


def gate(step_ms: float | None) -> Gate:
    """A gate of the paper's RealNVP: ten classes of 100 epochs of 43 steps."""
    trials = [] if step_ms is None else [FAST.model_copy(update={"step_ms": step_ms})]
    return Gate(inputs="", dataset="mnist", recipe="realnvp", device="cuda", steps=43_000, classes=10, trials=trials)


@pytest.mark.parametrize(
    ("step_ms", "words"),
    [
        (8.5, "all fit"),
        (11.0, "8 of 10 classes fit, and the training goes on in a second call"),
        (11.9, "7 of 10 classes fit, and the training goes on in a second call"),
        (25.0, "3 of 10 classes fit, with a second call 4; never fewer epochs"),
    ],
)
def test_the_decision_of_the_75th_second(step_ms: float, words: str) -> None:
    first = Budget(590, lambda: 75.0, begin=0.0).left(step_of("train")) - plan.BEFORE
    second = Budget(plan.SECOND_CALL, lambda: 0.0, begin=0.0).left(step_of("train")) - plan.STARTING
    sentence = decision(gate(step_ms), first, second)
    assert sentence.startswith(f"realnvp: {step_ms:.2f} ms a step (bfloat16, captured, compiled), so 43,000 steps")
    assert sentence.endswith(words)


def test_without_a_timed_variant_the_decision_says_so() -> None:
    assert "no variant was timed" in decision(gate(None), 400, 100)


def test_the_fastest_variant_without_an_error_is_chosen() -> None:
    reference = Trial(precision="float32", capture=False, compile=False, step_ms=30.0, gradient_error=0.0)
    tf32 = Trial(precision="tf32", capture=True, compile=False, step_ms=18.0, gradient_error=0.001)
    wrong = FAST.model_copy(update={"step_ms": 7.0, "error": "its gradient is off"})
    trials = [reference, tf32, wrong]
    assert gate(None).model_copy(update={"trials": trials}).chosen == tf32
    assert gate(None).chosen.settings == {"precision": "float32", "capture": False, "compile": False}


def test_the_gate_is_read_if_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_gate() is None
    write_json(plan.GATE, gate(8.0).model_dump(mode="json"))
    assert read_gate() == gate(8.0)
    plan.GATE.write_text("{")
    assert read_gate() is None


def test_a_gate_holds_for_a_recipe_whatever_it_chose() -> None:
    recipe = load_preset("laptop").recipe("realnvp")
    assert recipe.training is not None
    chosen = recipe.model_copy(update={"training": recipe.training.model_copy(update=FAST.settings)})
    wider = recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": 64})})
    digests = [gate_inputs(each, "mnist", fixed=False) for each in (recipe, chosen, wider)]
    assert digests[0] == digests[1] != digests[2]
    assert len({gate_inputs(each, "mnist", fixed=True) for each in (recipe, chosen, wider)} | {*digests}) == 5


def test_the_commands_to_give_next() -> None:
    archive, published = Path("home/run.tar.gz"), Path("reports/published/x")
    lines = advice(archive, " --plan paper", None, done=False)
    assert lines[0].endswith(": python -m pipeline.run --plan paper --out home --time-limit 190")
    assert lines[1].endswith(": python -m pipeline.publish home/run.tar.gz NAME")
    assert lines[2].endswith("--time-limit 590 --published reports/published/NAME")
    assert advice(archive, "", None, done=True) == lines[1:2]
    lines = advice(archive, " --params a.yaml", published, done=False)
    assert lines[0].endswith(f"run --params a.yaml --out home --time-limit 190 --published {published}")
    assert lines[1].endswith("publish home/run.tar.gz x")
    assert lines[2].endswith(f"--time-limit 590 --published {published}")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(math.inf, "this call has no limit: all fit"), (-20.0, "this call has 0 s for them: 0 of 10 classes fit")],
)
def test_a_decision_without_time_or_without_a_limit(seconds: float, words: str) -> None:
    assert words in decision(gate(8.0), seconds, 100)


def test_the_trials_of_some_settings() -> None:
    slow = FAST.model_copy(update={"capture": False, "step_ms": 30.0})
    wrong = slow.model_copy(update={"error": "no"})
    both = gate(None).model_copy(update={"trials": [FAST.model_copy(update={"step_ms": 8.0}), slow, wrong]})
    assert both.of({**slow.settings, "epochs": 3}).trials == [slow]
    assert both.of({**slow.settings, "precision": "tf32"}).trials == []
